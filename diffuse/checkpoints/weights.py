"""Fills a module with a component's published weights: strictly, in the wanted dtype, where they are wanted, once.

A module is built on the meta device, so that nothing is allocated or initialised before the weights are there. On the
CPU, a tensor that is published in the wanted dtype stays in the mapped file and is read when it is first used. Every
other tensor is read through a small window into its final place, so that memory never holds a second copy.

Large tensors are mapped in several parts, because a layer that packs its weight in another order when it is first used
(`diffuse.layers.packed`) has no more use for the published one: its pages then leave memory.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffuse.checkpoints.architecture import architecture
from diffuse.checkpoints.folder import Checkpoint, TensorInfo, read_header
from diffuse.errors import CheckpointError

__all__ = ["Checkpoint", "architecture", "check", "load"]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_LARGE_BYTES = 256 << 10  # of which a smaller one is not packed, or does not matter
_PARTS = 16  # mappings, each of which holds a file descriptor
_WINDOW_BYTES = 16 << 20


def check(
    build: Callable[[], nn.Module],
    checkpoint: Checkpoint,
    component: str,
    *,
    rename: Callable[[str], str | None] = lambda key: key,
) -> None:
    """Finds out from the headers alone whether `load` could fill the module that `build` makes.

    Raises:
        CheckpointError: as `load` does; or there is no such module, because the numbers of its configuration do not
            go together.
    """
    try:
        wanted = skeleton(build).state_dict()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        where = checkpoint.where(checkpoint.path(f"{component}/config.json"))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{where}: its numbers make no model ({reason}); copy or download it again, or use another checkpoint"
        ) from error
    _match(_headers(checkpoint, component), wanted, rename, checkpoint, component)


def load(
    build: Callable[[], nn.Module],
    checkpoint: Checkpoint,
    component: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    rename: Callable[[str], str | None] = lambda key: key,
    keep_float32: Callable[[str], bool] = lambda key: False,
) -> nn.Module:
    """The module that `build` makes, filled, on `device`, in evaluation mode and without gradients.

    `rename` maps a published key to the module's own, or to None for a tensor the module has no use for, which is then
    not read. Parameters whose own key satisfies `keep_float32` are float32 whatever `dtype` is.

    Buffers outside the state dict are not in the files: avoid them, or give the module that owns them a method
    `materialize()` that makes them anew, on the CPU; it is called once, and its buffers are moved and not cast.

    Raises:
        CheckpointError: a file is damaged, or a key is missing, unexpected, there twice, of the wrong shape or of a
            dtype that is not floating point. The message names the file and the key. Nothing is read before all fit.
    """
    device = torch.device(device)
    module = skeleton(build)
    files = _headers(checkpoint, component)
    sources = _match(files, module.state_dict(), rename, checkpoint, component)
    tensors: dict[str, Tensor] = {}
    for path, keys in sources.items():
        try:
            tensors |= _read(path, files[path], keys, device, lambda key: torch.float32 if keep_float32(key) else dtype)
        except OSError as error:
            raise CheckpointError(f"{checkpoint.where(path)}: cannot be read: {error.strerror or error}") from None
    owners = dict(module.named_modules())
    for key, tensor in tensors.items():
        owner, _, name = key.rpartition(".")
        _assign(owners[owner], name, tensor)
    _materialize(module, device)
    return module.eval()


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, without storage: its keys and shapes."""
    with torch.device("meta"), _WithoutInitialisation():
        return build()


def _headers(checkpoint: Checkpoint, component: str) -> dict[Path, dict[str, TensorInfo]]:
    return {path: read_header(path, checkpoint.where(path)) for path in checkpoint.files(component)}


class _WithoutInitialisation(TorchFunctionMode):
    """Skips `torch.nn.init`: what it would fill has no storage yet, and will be replaced."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _match(
    files: Mapping[Path, Mapping[str, TensorInfo]],
    wanted: Mapping[str, Tensor],
    rename: Callable[[str], str | None],
    checkpoint: Checkpoint,
    component: str,
) -> dict[Path, dict[str, str]]:
    """File -> {published key: the module's key}, one for each of the `wanted`."""
    sources: dict[Path, dict[str, str]] = {}
    origin: dict[str, str] = {}
    unexpected: list[str] = []
    for path, header in files.items():
        where = checkpoint.where(path)
        for published, info in header.items():
            key = rename(published)
            if key is None:
                continue
            if key not in wanted:
                unexpected.append(published)
                continue
            if key in origin:
                raise CheckpointError(
                    f"{where}: {published} is there twice, also as {origin[key]}; the file is damaged"
                )
            shape = tuple(wanted[key].shape)
            if info.shape != shape:
                raise CheckpointError(
                    f"{where}: {published} has the shape {list(info.shape)} where {component}/config.json asks for "
                    f"{list(shape)}; the two files are of different models"
                )
            if info.dtype not in _DTYPES:
                raise CheckpointError(
                    f"{where}: {published} is stored as {info.dtype}; implemented: {', '.join(_DTYPES)}; use a "
                    "checkpoint that is not quantized"
                )
            origin[key] = published
            sources.setdefault(path, {})[published] = key
        if unexpected:
            raise CheckpointError(
                f"{where}: has {_some(unexpected)}, which the model of {component}/config.json has no place for; "
                "the two files are of different models"
            )
    missing = [key for key in wanted if key not in origin]
    if missing:
        where = checkpoint.where(next(iter(files))) if len(files) == 1 else checkpoint.named(component)
        raise CheckpointError(
            f"{where}: lacks {_some(missing)}, which {component}/config.json asks for; the files are incomplete or of "
            "different models"
        )
    return sources


def _some(keys: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(sorted(keys)[:3]) + more


def _read(
    path: Path,
    header: Mapping[str, TensorInfo],
    keys: Mapping[str, str],
    device: torch.device,
    target: Callable[[str], torch.dtype],
) -> dict[str, Tensor]:
    """The module's key -> its tensor, from one file."""
    tensors: dict[str, Tensor] = {}
    copied: list[str] = []
    large: list[str] = []
    with safe_open(path, framework="pt", device="cpu") as mapped:
        for published, key in keys.items():
            info = header[published]
            stored = _DTYPES[info.dtype]
            if device.type != "cpu" or stored != target(key) or info.start % stored.itemsize != 0:
                copied.append(published)
            elif info.nbytes > _LARGE_BYTES:
                large.append(published)
            else:
                tensors[key] = mapped.get_tensor(published)
    if large:
        tensors |= {keys[name]: tensor for name, tensor in _map_in_parts(path, header, large).items()}
    if copied:
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # a disk is asked for more at a time
            for published in sorted(copied, key=lambda name: header[name].start):
                key = keys[published]
                tensors[key] = _copy(file, header[published], device, target(key))
    return tensors


def _map_in_parts(path: Path, header: Mapping[str, TensorInfo], names: Sequence[str]) -> dict[str, Tensor]:
    """Published name -> tensor in the file, in about `_PARTS` mappings, each unmapped with the last of its tensors."""
    names = sorted(names, key=lambda name: header[name].start)
    share = sum(header[name].nbytes for name in names) / _PARTS
    parts: dict[int, list[str]] = {}
    before = 0
    for name in names:
        parts.setdefault(int(before / share), []).append(name)
        before += header[name].nbytes
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        for part in parts.values():
            first, last = header[part[0]], header[part[-1]]
            offset = first.start - first.start % mmap.ALLOCATIONGRANULARITY
            length = last.start + last.nbytes - offset
            # Private and writable, because PyTorch has no read-only tensors; nothing writes to it.
            pages = mmap.mmap(file.fileno(), length, offset=offset, access=mmap.ACCESS_COPY)
            for name in part:
                info = header[name]
                flat = torch.frombuffer(
                    pages, dtype=_DTYPES[info.dtype], count=math.prod(info.shape), offset=info.start - offset
                )
                tensors[name] = flat.view(info.shape)
    return tensors


def _copy(file: BinaryIO, info: TensorInfo, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One tensor, piece by piece through a window on the file; on an accelerator it is converted there."""
    stored = _DTYPES[info.dtype]
    result = torch.empty(info.shape, dtype=dtype, device=device)
    flat = result.view(-1)
    most = _WINDOW_BYTES // stored.itemsize
    for first in range(0, flat.numel(), most):
        target = flat[first : first + most]
        piece = _window(file, info.start + first * stored.itemsize, stored, target.numel())
        if device.type != "cpu":
            # Some accelerators have no float64.
            piece = (piece.float() if stored == torch.float64 else piece).to(device)
        elif stored != dtype and stored.itemsize == dtype.itemsize == 2:
            piece = piece.float()  # on the way from one half to the other this costs a third
        target.copy_(piece)
    return result


def _window(file: BinaryIO, start: int, dtype: torch.dtype, count: int) -> Tensor:
    """`count` numbers of the file from byte `start` on, mapped: their pages leave memory with the tensor.

    That is faster than to read them, which would copy each byte once more.
    """
    offset = start - start % mmap.ALLOCATIONGRANULARITY
    length = start + count * dtype.itemsize - offset
    # Private and writable, because PyTorch has no read-only tensors; nothing writes to it.
    pages = mmap.mmap(file.fileno(), length, offset=offset, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=start - offset)


def _assign(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[name] = tensor


def _materialize(module: nn.Module, device: torch.device) -> None:
    """Gives a place to the buffers that no file holds.

    Raises:
        RuntimeError: a module leaves a tensor without storage; a mistake in the module, not in the checkpoint.
    """
    for name, owner in module.named_modules():
        if any(buffer is not None and buffer.is_meta for buffer in owner._buffers.values()):
            if not hasattr(owner, "materialize"):
                raise RuntimeError(
                    f"{type(owner).__name__} {name}: has a buffer outside its state dict and no materialize()"
                )
            owner.materialize()
            for buffer, value in owner._buffers.items():
                owner._buffers[buffer] = None if value is None else value.to(device)
        for held in (owner._parameters, owner._buffers, vars(owner)):
            for attribute, value in held.items():
                if isinstance(value, Tensor) and value.is_meta:
                    raise RuntimeError(f"{type(owner).__name__} {name}: {attribute} was left without storage")
