"""A safetensors file: which tensors it declares, checked without reading them, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse.checkpoints.scaled_weights import with_scales
from diffuse.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit; only a damaged file can claim more


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's entry in the header. `start` counts bytes from the beginning of the file.

    `axes` are the tensor's axes in the order in which they lie in the file, where that is another than theirs. `scale`
    `[1]` or `[O]` multiplies the tensor, or each of its rows.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    axes: tuple[int, ...] | None = None
    scale: StoredTensor | None = None

    @property
    def is_quantized(self) -> bool:
        """Tells whether it has fewer bits than a tensor that is computed with."""
        return self.dtype not in ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredFile:
    """A file in which tensors lie; `name` is for messages, `tensors` maps published key -> entry."""

    path: Path
    name: str
    tensors: Mapping[str, StoredTensor]

    def read(self, dtypes: Mapping[str, torch.dtype], device: torch.device) -> dict[str, Tensor]:
        """Reads some of the tensors, each once and straight into its place.

        Args:
            dtypes: the published keys to read, each with the dtype that its tensor is to have.
            device: where the tensors are to be.

        Returns:
            Published key -> tensor of the published shape `[...]`.

        Raises:
            OSError: the file cannot be read.
        """
        from diffuse.checkpoints import tensor_reading  # needs torch, which listing files does not

        return tensor_reading.read_tensors(self.path, self.tensors, dtypes, device)

    def stays_in_file(self, key: str, dtype: torch.dtype) -> bool:
        """Returns whether `read` leaves a tensor that is wanted on the CPU in the file, mapped."""
        from diffuse.checkpoints import tensor_reading

        return tensor_reading.stays_in_file(self.tensors[key], dtype)


@dataclass(frozen=True)
class SafetensorsFile(StoredFile):
    """A file whose header has been checked."""

    @classmethod
    def open(cls, path: Path, name: str | None = None) -> SafetensorsFile:
        """Opens a file and checks that its header and its length fit together.

        Raises:
            CheckpointError: the file cannot be read, is cut short, or is not a safetensors file.
        """
        name = name or str(path)
        return cls(path, name, _read_entries(path, name))


def unreadable(name: str, error: OSError) -> CheckpointError:
    """Returns the error for a file or folder `name` that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{name}: is missing, or a link to a file that is; copy or download it again")
    if isinstance(error, IsADirectoryError):
        return CheckpointError(f"{name}: is a folder and should be a file; copy or download it again")
    return CheckpointError(f"{name}: cannot be read: {error.strerror or error}; check its permissions and the disk")


def header_bytes(path: Path) -> bytes:
    """Returns the header as it is stored: JSON, not checked.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), _MAX_HEADER_BYTES))


def _read_entries(path: Path, name: str) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks that header and data fit together, reads no tensor
            pass
        header = header_bytes(path)
    except OSError as error:
        raise unreadable(name, error) from None
    except SafetensorError as error:
        raise CheckpointError(f"{name}: {_explain_damage(path, str(error))}") from None
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    data = 8 + len(header)
    stored = {
        key: StoredTensor(
            entry["dtype"],
            tuple(entry["shape"]),
            data + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for key, entry in entries.items()
    }
    return with_scales(stored, name)


def _explain_damage(path: Path, message: str) -> str:
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "the file is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer and not the weights; run 'git lfs pull' in the checkpoint's folder"
    if start.startswith(b"GGUF"):
        return "is a GGUF file; rename it to end in .gguf"
    behind = _bytes_behind(path)
    if behind > 0:
        return (
            f"{behind} bytes lie behind the weights, where a safetensors file ends; something was appended, or two "
            "files were joined: copy or download it again"
        )
    if "not fully covered" in message or "IncompleteBuffer" in message:
        return "the file is cut short; copy or download it again"
    reason = message.removeprefix("Error while deserializing header: ").splitlines()[0]
    return f"is not a readable safetensors file ({reason}); copy or download it again"


def _bytes_behind(path: Path) -> int:
    """Returns how many bytes a file has behind the tensors of its header; 0 where the header cannot be read."""
    try:
        header = header_bytes(path)
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        return int(path.stat().st_size - 8 - len(header) - max(ends, default=0))
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return 0
