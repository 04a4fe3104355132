"""Reads a file of textual inversion: the word that it is for, and the vectors of each text encoder.

Formats: that of diffusers, `{"<word>": vectors}`; that of the first implementation and of AUTOMATIC1111's web UI, as a
pickle with `string_to_param` and `name`, or as safetensors with `emb_params`; and those of SDXL, `clip_l` and `clip_g`.
Pickles are read as data by `torch_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse.checkpoints.folder import file_digest, file_state
from diffuse.checkpoints.lora.keys import split_keys
from diffuse.checkpoints.safetensors_file import StoredFile, StoredTensor, unreadable
from diffuse.checkpoints.tensor_reading import DTYPES
from diffuse.checkpoints.torch_files.declarations import is_tensor
from diffuse.checkpoints.torch_files.torch_file import open_weights_file, weights_by_name
from diffuse.checkpoints.torch_files.unpickle import Product
from diffuse.errors import CheckpointError
from diffuse.models.lora.family import other_model

CLIP_L, CLIP_G = "clip_l", "clip_g"
_PARTS = {CLIP_L: CLIP_L, CLIP_G: CLIP_G, "text_encoders_0": CLIP_L, "text_encoders_1": CLIP_G}  # key -> encoder
_VECTORS = "emb_params"
_PARAMETERS = "string_to_param"
_SHOWN = 3  # keys in a message
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class EmbeddingFile:
    """A file of textual inversion on this machine, its declarations checked.

    Args:
        path: of the file.
        source: what the user asked for.
        file: its tensors.
        keys: `clip_l`, `clip_g`, or None where the file does not say which text encoder it is for -> the tensor.
        word: that the file says stands for it; None where it says none.
        revision: the commit on the hub; None for a file of this machine.
    """

    path: Path
    source: str
    file: StoredFile
    keys: Mapping[str | None, str]
    word: str | None
    revision: str | None = None

    @classmethod
    def open(cls, path: Path, source: str, revision: str | None = None) -> EmbeddingFile:
        """Opens a file.

        Raises:
            CheckpointError: it cannot be read, is damaged, or no textual inversion.
        """
        words: list[str] = []
        file = open_weights_file(path, source, lambda root, name: _pickled_vectors(root, name, words))
        keys, word = _vectors(file.tensors, source)
        for key in keys.values():
            _check(file.tensors[key], key, source)
        return cls(path, source, file, keys, word or next(iter(words), None), revision)

    @property
    def identity(self) -> str:
        """Tells files apart within a process: one that was replaced has another identity."""
        try:
            return f"{self.path} {file_state(self.path)}"
        except OSError as error:
            raise unreadable(self.source, error) from None

    def shape(self, part: str | None) -> tuple[int, int]:
        """Returns the number of a text encoder's vectors, and their width; see `keys`."""
        shape = self.file.tensors[self.keys[part]].shape
        return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])

    def vectors(self, part: str | None) -> Tensor:
        """Reads the vectors `[N, D]` of a text encoder, in float32; see `keys`.

        Raises:
            CheckpointError: they cannot be read, or hold NaN or an infinity.
        """
        key = self.keys[part]
        try:
            vectors = self.file.read({key: torch.float32}, _CPU)[key].reshape(self.shape(part)).clone()
        except OSError as error:
            raise unreadable(self.source, error) from None
        if not torch.isfinite(vectors).all():
            raise CheckpointError(f"{self.source}: {key} holds NaN or an infinity; the file is damaged")
        return vectors

    def record(self) -> dict[str, Any]:
        """Returns the file's source, its commit if it is on the hub, and its digest, for the record."""
        try:
            digest = file_digest(self.path)
        except OSError as error:
            raise unreadable(self.source, error) from None
        commit = {} if self.revision is None else {"revision": self.revision}
        return {"source": self.source, **commit, "sha256": digest}


def _vectors(tensors: Mapping[str, StoredTensor], source: str) -> tuple[dict[str | None, str], str | None]:
    """Returns the tensor of each text encoder, and the word that the file says.

    Raises:
        CheckpointError: the file holds something else.
    """
    parts: dict[str | None, str] = {_PARTS[key]: key for key in tensors if key in _PARTS}
    if parts and len(parts) == len(tensors):
        return parts, None
    if len(tensors) == 1:
        (key,) = tensors
        is_lora = bool(split_keys(tensors)[0])
        if not is_lora:
            return {None: key}, None if key == _VECTORS else key
    layers, others, _ = split_keys(tensors)
    listed = ", ".join(f"{key:.80}" for key in [*tensors][:_SHOWN])
    more = f" and {len(tensors) - _SHOWN} more" if len(tensors) > _SHOWN else ""
    what = "a LoRA, which is put on with lora=FILE" if layers else other_model(others)
    seems = f"it seems to be {what}" if what else "it should hold the vectors of one word"
    raise CheckpointError(f"{source}: is no textual inversion; {seems} ({listed}{more})")


def _check(entry: StoredTensor, key: str, source: str) -> None:
    shape = list(entry.shape)
    if not 1 <= len(shape) <= 2 or 0 in shape:
        raise CheckpointError(f"{source}: {key:.80} is {shape} and should be [N, D], N vectors of D numbers")
    if entry.dtype not in DTYPES:
        raise CheckpointError(f"{source}: {key:.80} is stored as {entry.dtype}; one of {', '.join(DTYPES)} is read")


def _pickled_vectors(root: Any, name: str, words: list[str]) -> Mapping[str, Any]:
    """Returns the tensors of a pickle by their names, and adds the word that it says to `words`."""
    if not isinstance(root, dict) or _PARAMETERS not in root:
        return weights_by_name(root, name)
    found = list(_tensors_in(root[_PARAMETERS]))
    if len(found) != 1:
        raise CheckpointError(f"{name}: has vectors of {len(found)} words, and one is read; save them apart")
    if isinstance(root.get("name"), str) and root["name"]:
        words.append(root["name"])
    return {_VECTORS: found[0]}


def _tensors_in(value: Any) -> Iterator[Any]:
    """Yields the tensors of a dict, or of a ParameterDict, which keeps them in its state."""
    if isinstance(value, Product) and not is_tensor(value):
        state = value.state
        value = {**value.items, **(state if isinstance(state, dict) else {})}
        inner = value.pop("_parameters", None)
        value |= inner if isinstance(inner, dict) else {}
    for each in value.values() if isinstance(value, dict) else ():
        if is_tensor(each):
            yield each
