"""The place of one component of a model: its module is loaded when first used, leaves the device and comes back.

The only module that moves modules, with `streaming` and `sharding`, which it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from diffuse.device.compile import compile_blocks
from diffuse.device.patches import Patch, change_patch, patch_key
from diffuse.device.sharding import Shards
from diffuse.device.streaming import BlockStream, outermost_blocks
from diffuse.layers.quantized import relative_error

Load = Callable[[torch.device, torch.dtype], nn.Module]


class _DeviceHook(ModelHook):  # type: ignore[misc]  # accelerate carries no types
    """A hook that keeps a module on the CPU and brings it to the device when it is called.

    accelerate's `CpuOffload` does the same, but its first call imports torch's compiler (1.4 s with accelerate 1.15),
    which takes longer than a small image.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module.to("cpu")

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        first = next(module.parameters(), None)
        if first is None or first.device.type != self.device.type:
            module.to(self.device)
        return args, kwargs


@dataclass
class ManagedModule:
    """A module that is loaded on first use, with its place and its dtype.

    Attributes:
        on_device: the profile keeps it on the device, which it leaves when another phase begins.
        tileable: it can work on parts of an image, see `memory_profile.tiled_decode`.
        compiled: its blocks are compiled.
        deterministic: its compiled blocks must compute the same bits in every run.
        streamed_blocks: the classes of the blocks that stream, empty where it is on the device as a whole.
        resident_blocks: how many of these blocks stay on the device.
        from_disk: weights that stream are read from their file at each use, see `BlockStream`.
        blocks: the classes of the blocks that could stream.
        cards: those that its blocks are spread over; empty where it is on one device.
        block_count: how many of these it has; None before it is loaded for the first time.
        stream: made when the module is loaded, if it streams.
        shards: likewise, if it is spread over cards.
        hook: attached when the module leaves the device for the first time.
        patch: what is to be on its weights when it is next used; None for nothing.
        applied: what is on them now.
        relative_error: of its stored weights, where they are quantized; None before it is loaded for the first time.
        present: the module is on its own device now.
        users: how many `with` blocks are using it.
    """

    load: Load
    on_device: bool
    device: torch.device
    dtype: torch.dtype
    tileable: bool = False
    compiled: bool = False
    deterministic: bool = False
    streamed_blocks: tuple[type[nn.Module], ...] = ()
    resident_blocks: int = 0
    from_disk: bool = False
    blocks: tuple[type[nn.Module], ...] = ()
    cards: Sequence[torch.device] = ()
    block_count: int | None = None
    stream: BlockStream | None = None
    shards: Shards | None = None
    module: nn.Module | None = None
    hook: _DeviceHook | None = None
    patch: Patch | None = None
    applied: Patch | None = None
    relative_error: float | None = None
    present: bool = False
    users: int = 0

    def arrive(self) -> nn.Module:
        """Returns the module on its device, with its patch on; loads it where it is not loaded."""
        if self.module is None:
            waits = bool(self.streamed_blocks or self.cards)  # in main memory, for its way to the device
            self.module = self.load(torch.device("cpu") if waits else self.device, self.dtype)
            self.relative_error = relative_error(self.module)
            if self.compiled:
                compile_blocks(self.module, deterministic=self.deterministic)
            if self.streamed_blocks:
                self.stream = BlockStream(
                    self.module, self.streamed_blocks, self.device, self.resident_blocks, from_disk=self.from_disk
                )
            if self.cards:
                self.shards = Shards(self.module, self.blocks, self.cards)
        elif not self.present and self.hook is not None:
            # accelerate calls a hook before forward() only, and an autoencoder is used through decode().
            self.hook.pre_forward(self.module)
        if patch_key(self.patch) != patch_key(self.applied):
            self._change_patch(self.module)
        way = self.stream or self.shards
        if way is not None and not self.present:
            way.arrive()
        self.present = True
        return self.module

    def _change_patch(self, module: nn.Module) -> None:
        """Puts the patch on that is to be. Where that fails the module is dropped: it would be neither."""
        host, put = self.device, _put
        if self.stream is not None:
            self.stream.leave()
            self.present = False
            host, put = torch.device("cpu"), self.stream.put
        elif self.shards is not None:
            self.shards.leave()
            self.present, host = False, torch.device("cpu")
        try:
            change_patch(module, self.applied, self.patch, device=self.device, host=host, dtype=self.dtype, put=put)
        except BaseException:
            self.forget()
            raise
        if self.stream is not None:
            self.stream.renew()
        self.applied = self.patch

    def leave(self) -> None:
        """Moves the module to the CPU's memory. Attaching the hook is the first move: loading went to the device."""
        assert self.module is not None
        if way := self.stream or self.shards:
            way.leave()
        elif self.hook is None:
            self.hook = _DeviceHook(self.device)
            add_hook_to_module(self.module, self.hook)
        else:
            self.hook.init_hook(self.module)
        self.present = False

    def forget(self) -> None:
        """Drops the module. What is used again is loaded again."""
        if self.module is not None:
            self.block_count = len(outermost_blocks(self.module, self.blocks))
            remove_hook_from_module(self.module)
        self.module, self.hook, self.stream, self.shards, self.present = None, None, None, None, False
        self.applied = None


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, nn.Parameter(tensor, requires_grad=False))
