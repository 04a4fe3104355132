"""The arguments of Python's calls, as the overrides of the command line that they stand for."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse.config.groups import group_options
from diffuse.errors import ConfigError
from diffuse.schema import PROMPT_FIELDS

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse.sampling.prompt_embeddings import PromptEmbeddings


def model_fields(model: str | Path) -> dict[str, str]:
    """Returns the fields that name a model: an option of its group, or any checkpoint, a folder or a file."""
    name = str(model)
    if name in group_options("model") or not ("/" in name or name.startswith("~") or Path(name).exists()):
        return {"model": name}
    return {"model": "auto", "model.source": name}


def argument_overrides(fields: Mapping[str, Any]) -> dict[str, str]:
    """Returns by name the override of each field that is set, with those of the field `overrides`."""
    for name in PROMPT_FIELDS:
        _check_text(name, fields.get(name))
    given = fields.get("overrides") or ()
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise ConfigError(f"overrides={given!r}: should be a list of texts, such as ['scheduler.eta=0.5']")
    others = {override.partition("=")[0]: override for override in given}
    return others | {
        name: f"{name}={_override_value(name, value)}"
        for name, value in fields.items()
        if name != "overrides" and value is not None
    }


def _check_text(name: str, value: Any) -> None:
    if value is None or isinstance(value, str):
        return
    kind = f"{name}: is of type {type(value).__name__}"
    if isinstance(value, Sequence):
        raise ConfigError(
            f"{kind}, and a call takes one text; call once for each, or give num_images for several pictures of one"
        )
    raise ConfigError(f"{kind}; give a text")


def _override_value(name: str, value: Any) -> str:
    """Returns a value as it is written on a command line."""
    if hasattr(value, "tolist"):  # NumPy's and torch's own numbers and lists of them
        value = value.tolist()
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Sequence):
        return f"[{','.join(_override_value(name, item) for item in value)}]"
    try:
        return str(operator.index(value))
    except TypeError:
        raise ConfigError(f"{name}: is of type {type(value).__name__}; give text or a number") from None


def take_embeddings(fields: dict[str, Any]) -> PromptEmbeddings | None:
    """Takes the prompt embeddings out of the arguments of a call, which then has an empty prompt."""
    from diffuse.sampling.prompt_embeddings import EMBEDDINGS, read_embeddings

    embeddings = read_embeddings({name: fields.pop(name, None) for name in EMBEDDINGS})
    if embeddings is not None:
        for name in (*PROMPT_FIELDS, "prompt_file", "clip_skip", "long_prompt", "prompt_syntax"):
            if fields.get(name) is not None:
                raise ConfigError(
                    f"{name}: is read from no prompt where prompt_embeds are given; leave one of them out"
                )
        fields["prompt"] = ""
    return embeddings


def as_noise(latents: Any) -> Tensor | dict[str, Tensor]:
    """Returns latents of any kind as float32 on the CPU; by name where they are given so."""
    if isinstance(latents, Mapping):
        return {str(name): _as_noise(each) for name, each in latents.items()}
    return _as_noise(latents)


def _as_noise(latents: Any) -> Tensor:
    import torch

    try:
        tensor = torch.as_tensor(latents).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"latents: cannot be read as numbers ({error}); give a tensor or an array") from None
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError("latents: hold NaN or infinity; give noise of unit variance")
    return tensor
