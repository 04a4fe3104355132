"""A device with little memory: allocations fail where a test says so, or beyond a cap."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LittleMemory(TorchDispatchMode):
    """Counts allocations and the bytes that are alive; those of before are not counted.

    Args:
        fail_at: the allocations that fail, from 1.
        cap: the most bytes that may be alive at once; any more fail.
        error: makes the error that is raised.
        counts: whether allocations count now.
    """

    def __init__(
        self,
        fail_at: Collection[int] = (),
        cap: int | None = None,
        error: Callable[[], BaseException] = lambda: torch.OutOfMemoryError("CUDA out of memory."),
        counts: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__()
        self.fail_at, self.cap, self.error, self.counts = fail_at, cap, error, counts
        self.allocations = self.now = self.peak = self.failures = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in _plain((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for leaf in _plain(result):
            storage = leaf.untyped_storage()
            if leaf.is_meta or id(storage) in before or id(storage) in self._known:
                continue
            nbytes = storage.nbytes()
            if self.counts():
                self.allocations += 1
                if self.allocations in self.fail_at or (self.cap is not None and self.now + nbytes > self.cap):
                    self.failures += 1
                    raise self.error()
            self._known[id(storage)] = nbytes
            self.now += nbytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._leave, id(storage)).atexit = False
        return result

    def _leave(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


@contextmanager
def failing_calls(kind: type[nn.Module], calls: Collection[int]) -> Iterator[list[int]]:
    """Lets memory run out in those calls of modules of `kind`, from 1. Yields how many calls there were."""
    made = [0]

    def before(module: nn.Module, args: Any) -> None:
        if isinstance(module, kind):
            made[0] += 1
            if made[0] in calls:
                held = torch.zeros(1000)  # noqa: F841 - a frame that failed holds tensors
                raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = register_module_forward_pre_hook(before)
    try:
        yield made
    finally:
        hook.remove()


def live_bytes() -> int:
    """Returns the bytes of all tensors that Python knows, those that share a storage once."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    storages = [each.untyped_storage() for each in _plain(tensors)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _plain(value: Any) -> list[torch.Tensor]:
    """Returns the tensors that have a storage; a weight in oneDNN's own layout has none."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn]
