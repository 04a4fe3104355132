"""How tensors get from a file into their place: mapped where that is possible, otherwise through a window.

On the CPU, a large tensor that is published in the wanted dtype stays in the mapped file and is read when it is first
used. Every other tensor is read through a small window into its final place, so that memory never holds a second copy.

Large tensors are mapped in several parts, because a layer that packs its weight in another order when it is first used
(`diffuse.layers.packed`) has no more use for the published one: its pages then leave memory. Small tensors are copied,
because a small layer computes with its weight as it lies there, and MKL's last bits depend on where that is: the same
weights give the same bits from every file.

The system ends a process that reads a mapped page beyond the end of its file. So the length of a file is looked at
before it is mapped, and again by `check_mapped_files`, between the steps, as long as tensors lie in it. For a file that
is cut while a step reads it see `diffuse.checkpoints.bus_error`.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from diffuse.checkpoints.gguf.blocks import BLOCK_FORMATS
from diffuse.checkpoints.safetensors_file import StoredTensor
from diffuse.device.mapped_pages import add_mapping
from diffuse.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
READABLE = (*DTYPES, *_FLOAT8, *BLOCK_FORMATS)  # dtypes that tensors are read from
_UNPACKED_AT_ONCE = 1 << 20  # weights
_LARGE_BYTES = 256 << 10  # more than a layer has that is not packed
_mapped: weakref.WeakKeyDictionary[mmap.mmap, tuple[str, int]] = weakref.WeakKeyDictionary()  # name and length needed
_PARTS = 16  # mappings, each of which holds a file descriptor
_WINDOW_BYTES = 16 << 20


def read_tensors(
    path: Path, entries: Mapping[str, StoredTensor], dtypes: Mapping[str, torch.dtype], device: torch.device
) -> dict[str, Tensor]:
    """Reads some tensors of a file.

    Args:
        path: the file.
        entries: where its tensors lie, published key -> entry; every dtype in it is one of `READABLE`.
        dtypes: the published keys to read, each with the dtype that its tensor is to have.
        device: where the tensors are to be.

    Returns:
        Published key -> tensor of the published shape `[...]`.

    Raises:
        OSError: the file cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    copied: list[str] = []
    large: list[str] = []
    for key, dtype in dtypes.items():
        mapped = device.type == "cpu" and stays_in_file(entries[key], dtype)
        (large if mapped else copied).append(key)
    if large:
        tensors |= _map_in_parts(path, entries, large)
    if copied:
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # a disk is asked for more at a time
            window = _Window(file)
            for key in sorted(copied, key=lambda key: entries[key].start):
                tensors[key] = _copy(window, entries[key], device, dtypes[key])
    return tensors


def stays_in_file(entry: StoredTensor, dtype: torch.dtype) -> bool:
    """Returns whether a tensor that is wanted on the CPU is left in its file, mapped, and not copied."""
    as_wanted = DTYPES.get(entry.dtype) == dtype and entry.axes is None and entry.scale is None
    return as_wanted and entry.start % dtype.itemsize == 0 and is_large(entry.nbytes)


def is_large(nbytes: int) -> bool:
    """Returns whether a tensor of so many bytes is mapped where it can be."""
    return nbytes > _LARGE_BYTES


def _map_in_parts(path: Path, entries: Mapping[str, StoredTensor], keys: Sequence[str]) -> dict[str, Tensor]:
    """Maps tensors, published key -> tensor, in about `_PARTS` mappings, each unmapped with the last of its tensors."""
    keys = sorted(keys, key=lambda key: entries[key].start)
    share = sum(entries[key].nbytes for key in keys) / _PARTS
    parts: dict[int, list[str]] = {}
    before = 0
    for key in keys:
        parts.setdefault(int(before / share), []).append(key)
        before += entries[key].nbytes
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for part in parts.values():
            first, last = entries[part[0]], entries[part[-1]]
            _require(last.start + last.nbytes <= size)
            offset = first.start - first.start % mmap.ALLOCATIONGRANULARITY
            length = last.start + last.nbytes - offset
            # Private and writable, because PyTorch has no read-only tensors; nothing writes to it.
            pages = mmap.mmap(file.fileno(), length, offset=offset, access=mmap.ACCESS_COPY)
            _mapped[pages] = str(path), last.start + last.nbytes
            for key in part:
                entry = entries[key]
                flat = torch.frombuffer(
                    pages, dtype=DTYPES[entry.dtype], count=math.prod(entry.shape), offset=entry.start - offset
                )
                add_mapping(pages, flat.data_ptr() - entry.start + offset)
                tensors[key] = flat.view(entry.shape)
    return tensors


def check_mapped_files(folders: Collection[Path] | None = None) -> None:
    """Checks that the files are whole in which tensors of this process lie.

    Args:
        folders: of the checkpoints in use; None checks those of every model that is kept.

    Raises:
        CheckpointError: one was cut short since it was mapped.
    """
    for pages, (name, end) in list(_mapped.items()):
        if pages.size() >= end:  # of the file that is mapped, whatever has its name now
            continue
        if folders is None or any(Path(name).is_relative_to(folder) for folder in folders):
            raise CheckpointError(f"{name}: was cut short while it was in use; copy or download it again")


def _require(is_whole: bool) -> None:
    if not is_whole:
        raise OSError(errno.EIO, "it was cut short meanwhile")


class _Window:
    """A mapped part of a file, which moves on with what is read. The pages behind it leave memory.

    This is faster than reading, which would copy each byte once more.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._pages: mmap.mmap | bytes = b""
        self._offset = 0

    def numbers(self, start: int, dtype: torch.dtype, count: int) -> Tensor:
        """Returns the `count` numbers from byte `start` of the file on, `[count]`, as they are mapped."""
        end = start + count * dtype.itemsize
        _require(end <= self._size)
        if not self._offset <= start < end <= self._offset + len(self._pages):
            self._offset = start - start % mmap.ALLOCATIONGRANULARITY
            length = min(max(end - self._offset, _WINDOW_BYTES), self._size - self._offset)
            # Private and writable, because PyTorch has no read-only tensors; nothing writes to it.
            self._pages = mmap.mmap(self._file.fileno(), length, offset=self._offset, access=mmap.ACCESS_COPY)
            _mapped[self._pages] = self._file.name, self._offset + length
        return torch.frombuffer(self._pages, dtype=dtype, count=count, offset=start - self._offset)


def _copy(window: _Window, entry: StoredTensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Reads one tensor piece by piece through a window on the file; on an accelerator it is converted there."""
    if entry.scale is not None:
        scale = _copy(window, entry.scale, device, torch.float32)
        whole = _copy(window, replace(entry, scale=None), device, torch.float32)
        return whole.mul_(scale.view(-1, *[1] * (whole.ndim - 1)) if scale.numel() > 1 else scale).to(dtype)
    if entry.dtype in BLOCK_FORMATS:
        return _copy_blocks(window, entry, device, dtype)
    stored = (DTYPES | _FLOAT8)[entry.dtype]
    result = torch.empty(entry.shape, dtype=dtype, device=device)
    flat = result.view(-1)
    at_most = _WINDOW_BYTES // stored.itemsize
    for first in range(0, flat.numel(), at_most):
        target = flat[first : first + at_most]
        piece = window.numbers(entry.start + first * stored.itemsize, stored, target.numel())
        if device.type != "cpu":
            # Some accelerators have no float64.
            piece = (piece.float() if stored == torch.float64 else piece).to(device)
        elif stored != dtype and stored.itemsize == dtype.itemsize == 2:
            piece = piece.float()  # on the way from one half to the other this costs a third
        target.copy_(piece)
    if entry.axes is not None:
        places = [entry.axes.index(axis) for axis in range(len(entry.shape))]
        return flat.view([entry.shape[axis] for axis in entry.axes]).permute(places).contiguous()
    return result


def _copy_blocks(window: _Window, entry: StoredTensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Reads one tensor of a GGUF file, some blocks at a time."""
    form = BLOCK_FORMATS[entry.dtype]
    result = torch.empty(entry.shape, dtype=dtype, device=device)
    blocks = result.view(-1, form.weights)
    step = _UNPACKED_AT_ONCE // form.weights
    for first in range(0, len(blocks), step):
        target = blocks[first : first + step]
        piece = window.numbers(entry.start + first * form.nbytes, torch.uint8, len(target) * form.nbytes)
        target.copy_(form.unpack(piece.view(-1, form.nbytes).to(device)))
    return result
