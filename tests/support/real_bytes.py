"""Counts the bytes of tensors that are alive while something real is computed; the measure of predictions."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RealBytes(TorchDispatchMode):
    """Counts the bytes of real storages that are seen in or come from an operator, until they die.

    A packed weight has no storage; it counts as long as the layer's parameter lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, values: Any) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                continue
            if not tensor.is_mkldnn:
                storage = tensor.untyped_storage()
                self._add(storage, storage.nbytes())
            elif isinstance(tensor, torch.nn.Parameter):
                self._add(tensor, tensor.numel() * tensor.element_size())

    def _add(self, owner: Any, nbytes: int) -> None:
        if id(owner) not in self.alive:
            self.alive[id(owner)] = nbytes
            weakref.finalize(owner, self._remove, id(owner), nbytes).atexit = False
            self.now += nbytes
            self.peak = max(self.peak, self.now)

            self._rise()

    def _rise(self) -> None:
        """Is called when there are more bytes than before."""

    def _remove(self, key: int, nbytes: int) -> None:
        self.alive.pop(key, None)
        self.now -= nbytes
