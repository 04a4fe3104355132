"""Measures what tensors that a call makes take at most, at one time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class _Storages(TorchDispatchMode):
    """Counts the bytes of storages that operators return, until they die. Inputs are no new storages."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {self._key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (key := self._key(leaf)) not in before and key not in self.alive:
                storage = leaf.untyped_storage()
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
                self.peak = max(self.peak, sum(self.alive.values()))
        return result

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata


def storage_peak(call: Callable[[], T]) -> tuple[int, T]:
    """Returns the peak in bytes of the tensors that `call` makes, and its result."""
    with _Storages() as storages:
        result = call()
    return storages.peak, result
