"""The record of a run: everything needed to make its images again, as plain JSON values in a fixed order.

It goes into every file of the run and into the tracking store, and nowhere else; names and passwords in addresses, and
access tokens, are taken out on the way. Prompts are kept to the letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import diffuse
from diffuse.config.quoting import FILE_LISTS
from diffuse.config.text_backend import AUTO, is_own_encoder
from diffuse.config.tracking_settings import tracking_record
from diffuse.record.environment import determinism_settings, git_commit, library_versions, user_commit
from diffuse.record.values import json_values, redact, resolved_values
from diffuse.schema import COMPONENTS, GenerationRequest

# The parts of every record, in order. One in a file has `image` too, and a run's record.json has `images`.
PARTS: dict[str, type | tuple[type, ...]] = {
    "diffuse": str,
    "created": str,
    "config": dict,
    "overrides": list,
    "request": dict,
    "weights": dict,
    "hardware": dict,
    "inputs": dict,
    "determinism": dict,
    "versions": dict,
    "git": (dict, type(None)),
}
# Parts that a record may have.
OPTIONAL_PARTS: dict[str, type] = {
    "user_git": dict,  # the commit of the repository that the command ran in
    "shrunk_from": dict,  # the size and length that were asked for, where fit=shrink made them smaller
    "step_downs": list,  # what was done with less, and from where on, since memory ran out
    "memory": dict,  # the predicted and the measured peaks in GiB, where a budget was given
    "quantized": dict,  # by component: how its weights were stored, and their relative error
    "text_backend": dict,  # who encoded the prompts of a film, and the SHA-256 of embeddings that came from elsewhere
    "tracking": dict,  # by field of it of which the environment says something: whether that held
}


def run_record(
    config: Any,
    overrides: Sequence[str],
    request: GenerationRequest,
    *,
    weights: Mapping[str, Any],
    hardware: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    shrunk_from: Mapping[str, Any] | None = None,
    text_backend: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds the record of one run, before any image is made.

    Args:
        config: the composed configuration (a DictConfig, or a mapping). In the record, its null fields have the values
            of `request`, so that it makes the same images again.
        weights: `source`, `revision`, `variant` and `sha256` of what was read.
        hardware: Hardware.as_record().
        inputs: Inputs.as_record(), if the run starts from an image.
        shrunk_from: Shrunk.as_record(), if the request asked for more than the profile is meant for.
        text_backend: who encodes the prompts of a film.
    """
    fields = asdict(request)
    resolved = _without_own_components(resolved_values(config))
    resolved |= {key: value for key, value in fields.items() if key in resolved}
    if resolved.get("prompt_file"):
        resolved["prompt_file"] = None  # the run has one prompt of the file, now under `prompt`
    if is_own_encoder((resolved.get("text_backend") or {}).get("name", AUTO)):
        resolved.pop("text_backend", None)  # earlier records lack it
    for name, files in FILE_LISTS.items():
        if name in resolved:
            resolved[name] = files.values(resolved[name])
    tracking = resolved.get("tracking") or {}
    origins: dict[str, str] = {}
    if tracking.get("name") not in (None, "none"):
        values, origins = tracking_record(tracking)
        resolved["tracking"] = {**tracking, **values}
    record = {
        "diffuse": diffuse.__version__,
        "created": _now(),
        "config": resolved,
        "overrides": list(overrides),
        "request": fields,
        "weights": dict(weights),
        "hardware": dict(hardware),
        "inputs": dict(inputs or {}),
        "determinism": determinism_settings(),
        "versions": library_versions(),
        "git": git_commit(),
    }
    if (user_git := user_commit()) is not None:
        record["user_git"] = user_git
    if shrunk_from is not None:
        record["shrunk_from"] = dict(shrunk_from)
    if text_backend is not None:
        record["text_backend"] = dict(text_backend)
    if origins:
        record["tracking"] = origins
    redacted: dict[str, Any] = redact(json_values(record))
    return redacted


def record_with_seed(record: Mapping[str, Any], overrides: Sequence[str], *, seed: int, folder: str) -> dict[str, Any]:
    """Returns the record of a run that differs from the run of `record` in its seed and its folder alone."""
    config, request = record["config"], record["request"]
    return {
        **record,
        "created": _now(),
        "config": {**config, "seed": seed, "output": {**config["output"], "dir": redact(folder, "dir")}},
        "overrides": redact(list(overrides), "overrides"),
        "request": {**request, "seed": seed},
    }


def image_record(
    record: Mapping[str, Any], index: int, pixels_sha256: str, film: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the record of image or film `index` (from 0) of a run, which goes into its file.

    Args:
        film: `fps`, and where there is sound, `sound_sha256` and `sample_rate`.
    """
    image = {"index": index, "seed": record["request"]["seed"] + index, "pixels_sha256": pixels_sha256}
    return {**record, "image": image | dict(film or {})}


def record_with_images(record: Mapping[str, Any], images: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the record for a run's `record.json`: with `images`, the `image` part of each image's record."""
    return {**record, "images": [dict(image) for image in images]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _without_own_components(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration without the components that are the checkpoint's own, whose fields are all null."""

    def shorten(node: dict[str, Any]) -> dict[str, Any]:
        own = [name for name in COMPONENTS if name in node and not node[name].get("source")]
        return {key: value for key, value in node.items() if key not in own}

    return {key: shorten(value) if key in ("model", "refiner") else value for key, value in config.items()}
