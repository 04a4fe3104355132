"""Follows the bytes of tensors while a pipeline runs on the meta device, and counts its floating-point operations.

A storage counts from the operator that makes it until it dies. Views do not count, nor what was there before. Two
things differ between the meta device and a real one, and are set right here: attention is computed by one kernel, which
does not make the matrix of weights; and a tensor can be copied to the CPU and looked at, which gives zeros and ones.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default
_TO_CPU = (_aten._to_copy.default, _aten.copy_.default)
_META = torch.device("meta")
_BLOCK = 512  # bytes in which CUDA's allocator counts


@dataclass
class Ledger:
    """The bytes of the tensors that are alive, now and at most. `on_rise` is called with each storage that is made."""

    now: int = 0
    peak: int = 0
    on_rise: Callable[[], None] | None = None

    def add(self, nbytes: int) -> None:
        """Counts a storage that was made."""
        self.now += nbytes
        if self.now > self.peak:
            self.peak = self.now
        if self.on_rise is not None:
            self.on_rise()

    def remove(self, nbytes: int) -> None:
        """Takes off a storage that died."""
        self.now -= nbytes


@dataclass
class Call:
    """One call of a component, as it was followed: what it takes, and what it gives."""

    segments: list[tuple[int | None, int]] = field(default_factory=list)  # block or None, its peak in bytes
    flops: int = 0
    host: int = 0  # most bytes that are made on the CPU
    result: Any = None  # with a `TensorSpec` in the place of each tensor


@dataclass(frozen=True)
class TensorSpec:
    """The layout of a tensor without the tensor. `storage` tells which tensors share one."""

    storage: int
    storage_bytes: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


class LiveBytes(TorchDispatchMode):
    """Follows bytes, in the ledger that is current, and counts floating-point operations.

    Args:
        ledger: of all that is made on the meta device until another one takes its place.
        host: of all that is made on the CPU.
        rounded: count whole blocks, as CUDA's allocator does.
    """

    def __init__(self, ledger: Ledger, host: Ledger, *, rounded: bool) -> None:
        super().__init__()
        self.ledger = ledger
        self.host = host
        self.flops = 0
        self._rounded = rounded
        self._known: dict[int, int] = {}

    def know(self, tensors: Sequence[Tensor]) -> None:
        """Leaves tensors out of the count, such as weights."""
        for tensor in tensors:
            self._enter(tensor.untyped_storage(), None)

    @contextmanager
    def counting_in(self, ledger: Ledger) -> Iterator[None]:
        """Counts what is made on the meta device in `ledger`."""
        before, self.ledger = self.ledger, ledger
        try:
            yield
        finally:
            self.ledger = before

    def _follow_operator(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _ATTENTION:
            result = self._attention(*args, **kwargs)
        elif func is _aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1
        elif func in _TO_CPU and (copied := self._copy_to_cpu(func, args, kwargs)) is not None:
            return copied
        elif isinstance(out := kwargs.get("out"), Tensor) and out.is_meta:
            return out  # of the right shape, or it would be none; computing its shape would import torch's compiler
        else:
            packet = func.overloadpacket
            counted = flop_registry.get(packet)
            if counted is None:
                # In inference mode operators that consist of others arrive whole.
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            result = func(*args, **kwargs)
            if counted is not None:
                self.flops += counted(*args, **kwargs, out_val=result)
        self._count(result, args, kwargs)
        return result

    def _count(self, result: Any, args: Any, kwargs: Any) -> None:
        before: set[int] | None = None
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) in self._known:
                continue
            if before is None:  # a view of what was there before the mode is no new storage
                before = {id(each.untyped_storage()) for each in _tensors((args, kwargs))}
            self._enter(storage, None if id(storage) in before else self.ledger if tensor.is_meta else self.host)

    def _enter(self, storage: torch.UntypedStorage, ledger: Ledger | None) -> None:
        key, nbytes = id(storage), 0
        if key in self._known:
            return
        if ledger is not None:
            nbytes = storage.nbytes()
            if self._rounded and ledger is not self.host:
                nbytes = -(-nbytes // _BLOCK) * _BLOCK
        self._known[key] = nbytes
        # A storage's Python object lives as long as the storage.
        weakref.finalize(storage, self._leave, key, nbytes, ledger).atexit = False
        if ledger is not None:
            ledger.add(nbytes)

    def _leave(self, key: int, nbytes: int, ledger: Ledger | None) -> None:
        self._known.pop(key, None)
        if ledger is not None:
            ledger.remove(nbytes)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns attention `[B, heads, T, D]` as fused kernels allocate it: tokens first, and a float32 a query."""
        *batch, heads, tokens, width = q.shape
        self.flops += 2 * math.prod((*batch, heads, tokens, k.shape[-2])) * (width + v.shape[-1])
        logsumexp = q.new_empty(q.shape[:-1], dtype=torch.float32)
        result = q.new_empty(*batch, tokens, heads, v.shape[-1]).transpose(-2, -3)
        self._count((logsumexp, result), (), {})
        return result

    def _copy_to_cpu(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Returns zeros for a tensor of the meta device that is copied to the CPU; None for any other copy."""
        if func is _TO_CPU[0]:
            source, device = args[0], kwargs.get("device")
            if not source.is_meta or device is None or device.type != "cpu":
                return None
            dtype = kwargs.get("dtype") or source.dtype
            return torch.zeros((), dtype=dtype).expand(source.shape)
        target, source = args[:2]
        return target if isinstance(source, Tensor) and source.is_meta and not target.is_meta else None


# Set here and not in the class: there PyTorch would wrap it, and import its compiler (0.8 s) with the first operator.
LiveBytes.__torch_dispatch__ = LiveBytes._follow_operator  # type: ignore[method-assign, assignment]


def specify(value: Any) -> Any:
    """Returns `value` with a `TensorSpec` in the place of each tensor, in tuples, lists, dicts and plain objects."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        offset = int(value.storage_offset())
        return TensorSpec(id(storage), storage.nbytes(), tuple(value.shape), tuple(value.stride()), offset, value.dtype)
    return _map(value, specify)


def make_anew(value: Any) -> Any:
    """Returns `value` with a new tensor of the meta device in the place of each `TensorSpec`."""
    return _make(value, {})


def _make(part: Any, storages: dict[int, Tensor]) -> Any:
    if not isinstance(part, TensorSpec):
        return _map(part, lambda inner: _make(inner, storages))
    if part.storage not in storages:
        storages[part.storage] = torch.empty(part.storage_bytes, dtype=torch.uint8, device=_META)
    whole = storages[part.storage].view(part.dtype)
    return whole.as_strided(part.shape, part.stride, part.offset)


def describe(value: Any) -> Any:
    """Returns `value` with a text in the place of each tensor: what its computation depends on, beside its numbers."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} {value.device.type}"
    return _map(value, describe)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in an operator's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a copy of `value` with `change` of its parts."""
    if isinstance(value, tuple):
        parts = [change(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [change(part) for part in value]
    if isinstance(value, dict):
        return {name: change(part) for name, part in value.items()}
    if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        copy = object.__new__(type(value))
        vars(copy).update({name: change(part) for name, part in vars(value).items()})
        return copy
    return value
