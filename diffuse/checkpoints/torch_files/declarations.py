"""From what a pickle says of a tensor to where its numbers lie in the file. No number is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from diffuse.checkpoints.safetensors_file import StoredTensor
from diffuse.checkpoints.torch_files.archive import Record
from diffuse.checkpoints.torch_files.unpickle import Global, Product, Reference
from diffuse.errors import CheckpointError

_DTYPES = {  # of a storage: what safetensors calls it, and its bytes
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
_MOST_AXES = 8
_MOST_CONTAINERS = 200_000  # beside the weights
_LONGEST_SHOWN = 100
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
STORAGES = frozenset(f"torch.{name}" for name in _DTYPES)
TENSOR_GLOBALS = STORAGES | {_TENSOR, *_PARAMETERS, "collections.OrderedDict"}
"""The globals of which tensors are made."""

Storages = Mapping[str, Record]
"""Where the storages of a file lie, by their keys."""


def storage_type(value: Any) -> tuple[str, int]:
    """Returns the dtype of a storage, as safetensors names it, and the bytes of a number.

    Raises:
        KeyError: it is none.
    """
    if not isinstance(value, Global):
        raise KeyError
    return _DTYPES[value.name.removeprefix("torch.")]


def is_tensor(value: Any) -> bool:
    """Tells whether a value of a pickle is a tensor, or a parameter that holds one."""
    return isinstance(value, Product) and value.what in (_TENSOR, *_PARAMETERS)


def declare_tensors(values: Mapping[str, Any], storages: Storages, size: int, name: str) -> dict[str, StoredTensor]:
    """Returns where tensors lie, by their keys.

    Args:
        values: those of a pickle.
        storages: of the file.
        size: of the file in bytes.
        name: of the file, for messages.

    Raises:
        CheckpointError: one reaches outside its storage, or together they are far more than the file.
    """
    entries: dict[str, StoredTensor] = {}
    for key, value in values.items():
        try:
            entries[key] = _declare(value, storages)
        except (LookupError, TypeError, ValueError):
            raise CheckpointError(
                f"{name}: says of {key:.100} what cannot be, or what is not implemented; save it anew as safetensors"
            ) from None
    if sum(entry.nbytes for entry in entries.values()) > 2 * size:
        raise CheckpointError(f"{name}: its tensors are far larger than the file; it was made to fill the memory")
    return entries


def first_tensor_below(value: Any, name: str) -> str | None:
    """Returns the dotted name of the first tensor in dicts, lists, tuples and products in one another; None without.

    Each of them is looked at once, however often it is referred to.

    Args:
        value: of a pickle.
        name: of the file, for messages.

    Raises:
        CheckpointError: there are more of them than any file has.
    """
    left: list[tuple[str, Any]] = [("", value)]
    seen = {id(value)}
    for prefix, container in left:  # which grows meanwhile
        for key, part in _parts(container):
            if is_tensor(part):
                return f"{prefix}{key}"
            if type(part) in (dict, list, tuple, Product) and id(part) not in seen:
                if len(seen) >= _MOST_CONTAINERS:
                    raise CheckpointError(f"{name}: has more beside its weights than any file; it is refused")
                seen.add(id(part))
                left.append((f"{prefix}{key}."[:_LONGEST_SHOWN], part))
    return None


def _parts(container: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(container, Product):
        return (("arguments", container.arguments), ("state", container.state), ("items", container.items))
    return container.items() if isinstance(container, dict) else enumerate(container)


def _declare(value: Product, storages: Storages) -> StoredTensor:
    if value.what in _PARAMETERS:
        value = value.arguments[0]
        if not isinstance(value, Product) or value.what != _TENSOR:
            raise ValueError
    storage, offset, shape, strides = value.arguments[:4]
    if not isinstance(storage, Reference):
        raise ValueError
    kind, typed, key, _, count = storage.value[:5]
    dtype, itemsize = storage_type(typed)
    place = storages[key]
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) > _MOST_AXES:
        raise ValueError
    if kind != "storage" or not _are_sizes((offset, count, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError
    if len(storage.value) > 5 and storage.value[5] is not None:  # a view on a part, which old files may have
        raise ValueError
    if place.nbytes != count * itemsize or offset + math.prod(shape) > count:
        raise ValueError
    start, nbytes = place.start + offset * itemsize, math.prod(shape) * itemsize
    return StoredTensor(dtype, shape, start, nbytes, _axes(shape, strides))


def _are_sizes(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _axes(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the axes of a tensor in the order in which they lie in its storage; None where that is their own.

    Raises:
        ValueError: its numbers do not lie one after the other.
    """
    if 0 in shape:
        return None
    long = [axis for axis, length in enumerate(shape) if length != 1]
    order = sorted(long, key=lambda axis: -strides[axis])
    step = 1
    for axis in reversed(order):
        if strides[axis] != step:
            raise ValueError
        step *= shape[axis]
    return None if order == long else (*(axis for axis, length in enumerate(shape) if length == 1), *order)
