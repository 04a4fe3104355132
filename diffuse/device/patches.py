"""Patches: what is put on some weights of a component after they are loaded, and taken off or changed between runs.

Nothing is subtracted, which would not be exact: a weight that goes back to what it was is read again. A weight that is
stored in fewer bits stays as it is: its layer keeps the change beside it, and puts it on at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from diffuse.layers.quantized import QuantizedLayer, WeightChange

_GROUP_BYTES = 128 << 20  # of weights that are changed at a time

Put = Callable[[nn.Module, str, Tensor], None]
"""Puts a tensor in the place of a module's weight of this name."""


class Patch(Protocol):
    """Changes of a component's weights."""

    @property
    def key(self) -> str:
        """Tells patches apart: two with the same key make the same weights."""
        ...

    @property
    def weights(self) -> Collection[str]:
        """Lists the keys of the weights that it changes."""
        ...

    def originals(
        self, keys: Collection[str], device: torch.device, dtype: torch.dtype
    ) -> Iterator[Mapping[str, Tensor]]:
        """Yields weights `[...]` as they are without any patch, by their keys, some at a time."""
        ...

    def patched(self, originals: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields each weight's key, and what the patch makes of it, `[...]`, in a tensor of its own."""
        ...

    def changes(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, WeightChange]]:
        """Yields each weight's key, and its change, for layers that put it on at each call, its factors on `device`."""
        ...


def patch_key(patch: Patch | None) -> str:
    """Returns the key of a patch; that of none is empty."""
    return "" if patch is None else patch.key


@torch.inference_mode(False)
@torch.no_grad()
def change_patch(
    module: nn.Module,
    before: Patch | None,
    after: Patch | None,
    *,
    device: torch.device,
    host: torch.device,
    dtype: torch.dtype,
    put: Put,
) -> None:
    """Takes one patch off a module and puts another on. There is never a second copy of all weights.

    Args:
        before: the patch that is on.
        after: the one that is to be.
        device: computes the changes, so that they are the same wherever the weights are meanwhile.
        host: where the module's weights are.
        dtype: of the module's weights.
    """
    owners = dict(module.named_modules())
    old, new = (frozenset() if patch is None else frozenset(patch.weights) for patch in (before, after))
    stored = {f"{path}.weight": each for path, each in owners.items() if isinstance(each, QuantizedLayer)}
    for key in (old - new) & stored.keys():
        stored[key].set_change(None)
    if after is not None and new & stored.keys():
        for key, change in after.changes(sorted(new & stored.keys()), host):
            stored[key].set_change(change)
    old, new = old - stored.keys(), new - stored.keys()

    def put_all(tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            owner, _, name = key.rpartition(".")
            put(owners[owner], name, tensor)

    if before is not None and old - new:
        for tensors in before.originals(sorted(old - new), host, dtype):
            put_all(tensors)
    if after is None:
        return
    weights = {key: weight for key, weight in module.named_parameters() if key in new}
    for group in _groups(weights, dtype):
        there = {
            key: weights[key].detach().to(device) for key in group if key not in old and not weights[key].is_mkldnn
        }
        if missing := [key for key in group if key not in there]:
            for tensors in after.originals(missing, device, dtype):
                there |= tensors
        for key, tensor in after.patched(there):
            put_all({key: tensor.to(host)})


def _groups(weights: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[list[str]]:
    """Yields keys of weights, as many at a time as take `_GROUP_BYTES`."""
    group: list[str] = []
    nbytes = 0
    for key, weight in weights.items():
        size = weight.numel() * dtype.itemsize
        if group and nbytes + size > _GROUP_BYTES:
            yield group
            group, nbytes = [], 0
        group.append(key)
        nbytes += size
    if group:
        yield group
