"""The parameters of an image as AUTOMATIC1111's web UI writes them, which image viewers show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuse.schema import PromptSyntax


def parameters_text(
    record: Mapping[str, Any], sampler: str | None = None, settings: Mapping[str, str] | None = None
) -> str:
    """Returns the parameters of one image from its record (`record.image_record`), as AUTOMATIC1111's web UI does.

    They are the prompt, `Negative prompt: ...` unless it is empty, and one line of `Name: value` pairs, in which a
    value with a comma, a colon or a line break is JSON-quoted.

    Args:
        record: of one image.
        sampler: the name under which viewers know the sampler; None for the scheduler's own name.
        settings: of the sampler, by the names that viewers know (`schedulers.labels`).
    """
    request, weights = record["request"], record["weights"]
    texts = request["prompt"] + (request["negative_prompt"] or "")
    literal = request.get("prompt_syntax") != PromptSyntax.weighted.name and any(c in texts for c in "([")
    parts = weights.get("components", {})
    sampler_settings = dict(settings or {})
    model, vae = parts.get("unet", weights), parts.get("vae", {})
    pairs = {
        "Steps": request["num_inference_steps"],
        "Sampler": sampler or record["config"]["scheduler"]["name"],
        "Schedule type": sampler_settings.pop("Schedule type", ""),
        "CFG scale": f"{request['guidance_scale']:g}",
        "Seed": record["image"]["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Denoising strength": "" if request.get("strength") is None else f"{request['strength']:g}",
        "Clip skip": request["clip_skip"] + 1 if request.get("clip_skip") else "",  # there, 1 leaves out none
        "Emphasis": "None" if literal else "",  # there, brackets are weights unless this is said
        "Model hash": (model.get("sha256") or "")[:10],
        "Model": _model_name(Path(str(model.get("source") or record["config"]["model"]["name"]))),
        "VAE hash": vae.get("sha256", "")[:10],
        "VAE": Path(str(vae.get("source", ""))).name,
        **sampler_settings,
        "RNG": "CPU",  # each image has a generator of its own there
        "Version": f"diffuse {record['diffuse']}",
    }
    lines = [request["prompt"].strip()]
    if request["negative_prompt"]:
        lines.append(f"Negative prompt: {request['negative_prompt'].strip()}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items() if value != ""))
    return "\n".join(lines)


def _model_name(source: Path) -> str:
    """Returns the last part of where a model is from; the package's own ones, in its folder `tiny`, have a name."""
    shipped = {"tiny/checkpoint": "tiny", "tiny/video_checkpoint": "tiny_video"}
    return shipped.get("/".join(source.parts[-2:]), source.name)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value
