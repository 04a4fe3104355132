"""The two forms in which embeddings are written: safetensors, exactly and without padding, and JSON for anybody.

The file of `diffuse encode` and the binary answer of `diffuse serve-text` are the same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.media.files import write_new
from diffuse.text_backends.embeddings import Embeddings, TextEncoderIdentity, TextStates

JSON, SAFETENSORS = "application/json", "application/x-safetensors"  # media types
_FORMAT, _VERSION = "diffuse-text-embeddings", "1"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_STATES, _MASK = "prompt_embeds", "attention_mask"


def to_safetensors(embeddings: Embeddings) -> bytes:
    """Returns embeddings as the bytes of a safetensors file."""
    return save(*_contents(embeddings))


def write_embeddings_file(embeddings: Embeddings, path: Path) -> None:
    """Writes embeddings to a file that is not there yet, whole or not at all.

    Raises:
        ConfigError: it is there, or cannot be written.
    """
    tensors, metadata = _contents(embeddings)
    try:
        write_new(lambda temporary: save_file(tensors, temporary, metadata), path, folder=False)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already and is not overwritten; name another, or remove it") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be written: {_reason(error)}") from None


def _contents(embeddings: Embeddings) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file, and its metadata."""
    tensors: dict[str, Tensor] = {}
    for index, each in enumerate(embeddings.states):
        tensors[f"{_STATES}.{index}"] = each.states.detach().cpu().contiguous()
        tensors[f"{_MASK}.{index}"] = each.mask.contiguous()
    values = {
        "prompts": list(embeddings.prompts),
        "cut": [each.cut for each in embeddings.states],
        "max_sequence_length": embeddings.max_sequence_length,
        "text_encoder": embeddings.encoder.as_json(),
    }
    metadata = {"format": _FORMAT, "version": _VERSION}
    return tensors, metadata | {name: json.dumps(value) for name, value in values.items()}


def from_safetensors(data: bytes, where: str) -> Embeddings:
    """Reads the bytes of `to_safetensors`, which may be of anybody.

    Raises:
        ConfigError: they are not such.
    """
    try:
        (size,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__")
        tensors = load(data)
    except (SafetensorError, ValueError, AttributeError, struct.error, RecursionError):
        raise ConfigError(f"{where}: is no safetensors data; {_source(where)}") from None
    return _embeddings(metadata, tensors.get, where)


def read_embeddings_file(path: Path, where: str) -> Embeddings:
    """Reads a file of `diffuse encode`; the states stay in it until they are used.

    Raises:
        ConfigError: it is not there, or is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            return _embeddings(file.metadata(), lambda name: file.get_tensor(name) if name in names else None, where)
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such file; diffuse encode --out FILE writes one") from None
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "it is no safetensors file"
        raise ConfigError(f"{where}: cannot be read: {reason}; {_source(where)}") from None


def to_json(embeddings: Embeddings) -> bytes:
    """Returns embeddings as JSON: `embeddings` `[B][T][D]` and `attention_mask` `[B][T]`, padded to the longest.

    Each number is that of the state, to the bit.
    """
    length = max(len(each.states) for each in embeddings.states)
    rows, masks = [], []
    for each in embeddings.states:
        padding = torch.zeros(length - len(each.states), each.states.shape[1])
        rows.append(torch.cat((padding, each.states.detach().cpu().float())).tolist())
        masks.append(([0] * length + each.mask.tolist())[-length:])
    values = {
        "embeddings": rows,
        _MASK: masks,
        "max_sequence_length": embeddings.max_sequence_length,
        "text_encoder": embeddings.encoder.as_json(),
        "cut": [each.cut for each in embeddings.states],
    }
    return json.dumps(values, allow_nan=False).encode()


def from_json(data: bytes, prompts: Sequence[str], max_sequence_length: int, where: str) -> Embeddings:
    """Reads JSON as `to_json` writes it, of which `embeddings` and `attention_mask` are needed.

    A text that is shorter than `max_sequence_length` is padded in front.

    Raises:
        ConfigError: it is not such JSON.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: the answer is no JSON; {_source(where)}") from None
    values = values if isinstance(values, Mapping) else {}
    try:
        embeddings = torch.tensor(values["embeddings"], dtype=torch.float32)
        masks = torch.tensor(values[_MASK], dtype=torch.float32)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, RecursionError):
        raise _nonsense(where, "has no embeddings [B][T][D] with an attention_mask [B][T] of numbers") from None
    shape = tuple(embeddings.shape)
    if embeddings.ndim != 3 or tuple(masks.shape) != shape[:2] or 0 in shape:
        raise _nonsense(where, f"has embeddings {list(shape)} with an attention_mask {list(masks.shape)}")
    if shape[1] > max_sequence_length or not bool(((masks == 0) | (masks == 1)).all()):
        raise _nonsense(where, f"has {shape[1]} tokens of {max_sequence_length}, or a mask of other than 0 and 1")
    said = values.get("max_sequence_length", max_sequence_length)
    if type(said) is not int or not 0 < said <= 2**20:
        raise _nonsense(where, "has a max_sequence_length that is none")
    cut = values.get("cut")
    cuts = cut if isinstance(cut, list) and len(cut) == shape[0] else [""] * shape[0]
    states = []
    for row, mask, text in zip(embeddings, masks.to(torch.uint8), cuts, strict=True):
        first = int(mask.argmax()) if bool(mask.any()) else 0  # what lies before it is padding
        full = torch.cat((torch.zeros(max(said - len(mask), 0), dtype=torch.uint8), mask))
        states.append(TextStates(row[first:].clone(), full, str(text)))
    return Embeddings(list(prompts), states, said, TextEncoderIdentity.of_json(values.get("text_encoder")))


def _embeddings(metadata: Any, tensor: Callable[[str], Tensor | None], where: str) -> Embeddings:
    """Returns the embeddings that the metadata and the tensors of a safetensors file describe."""
    if not isinstance(metadata, Mapping) or metadata.get("format") != _FORMAT:
        raise ConfigError(f"{where}: holds no embeddings of prompts; {_source(where)}")
    if metadata.get("version") != _VERSION:
        raise ConfigError(f"{where}: was written by a later version of diffuse; use that one, or encode anew")
    try:
        prompts, cut, length, encoder = (
            json.loads(metadata[name]) for name in ("prompts", "cut", "max_sequence_length", "text_encoder")
        )
    except (KeyError, ValueError, TypeError, RecursionError):
        raise _nonsense(where, "has damaged metadata") from None
    texts = isinstance(prompts, list) and isinstance(cut, list) and len(prompts) == len(cut) and bool(prompts)
    if not texts or not all(isinstance(each, str) for each in (*prompts, *cut)) or type(length) is not int:
        raise _nonsense(where, "has damaged metadata")
    states = []
    for index, end in enumerate(cut):
        found, mask = tensor(f"{_STATES}.{index}"), tensor(f"{_MASK}.{index}")
        if found is None or mask is None:
            raise _nonsense(where, f"has no states of prompt {index + 1}")
        fits = found.ndim == 2 and mask.ndim == 1 and 0 < len(found) <= len(mask) == length
        if not fits or found.dtype not in _FLOATS or mask.dtype is not torch.uint8:
            raise _nonsense(where, f"has states {list(found.shape)} with an attention_mask {list(mask.shape)}")
        states.append(TextStates(found, mask, end))
    return Embeddings(prompts, states, length, TextEncoderIdentity.of_json(encoder))


def _reason(error: Exception) -> str:
    """Returns why a file could not be written, without the name of the temporary one."""
    text = str(getattr(error, "strerror", None) or error)
    return text.removeprefix("Error while serializing: I/O error: ").partition(" (os error")[0]


def _nonsense(where: str, reason: str) -> ConfigError:
    return ConfigError(f"{where}: {reason}; {_source(where)}")


def _source(where: str) -> str:
    web = "://" in where
    return "is it a service of text embeddings, such as diffuse serve-text?" if web else "diffuse encode writes them"
