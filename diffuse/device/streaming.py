"""Streaming: the repeated blocks of a component pass over the device one after the other.

The weights of the blocks stay on the host as they were loaded, mapped from their file where they could be. A block's
weights are copied to the device before the block is called and dropped after it: nothing is copied back. On a CUDA
device the block that comes next is copied on a stream of its own while this one computes. Which block comes next is
learned from the first call on, so that the last block of a step is followed by the first of the next step.

Where the device is the CPU itself, nothing is copied: a layer packs its weight when it is called, which is its copy
(`diffuse.layers.packed`), and that is dropped after the block.

Weights that a file maps can stream from the disk: each layer's pages leave main memory after it has computed, and those
that were copied to a card are given back when the layer is called there.

Other parts of the component, such as embeddings and the layers between blocks, are on the device all the time.

accelerate's `cpu_offload` does this for each layer, without looking ahead, and is slower; see
`tests/benchmarks/streaming.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffuse.device.host import available_ram
from diffuse.device.mapped_pages import MappedPages

_HOST_RESERVE = 2 << 30  # bytes of main memory that pinned copies of weights leave to others


class BlockStream:
    """The blocks of one module, and how many of them are on the device.

    Args:
        module: loaded on the CPU.
        block_types: the classes of its repeated blocks; a block inside another one moves with it.
        device: where the blocks compute.
        resident_blocks: how many blocks, in the module's order, are on the device from `arrive` to `leave`.
        from_disk: weights that are mapped from their file are read anew at each use, and take main memory for no
            longer than that.
    """

    def __init__(
        self,
        module: nn.Module,
        block_types: tuple[type[nn.Module], ...],
        device: torch.device,
        resident_blocks: int,
        *,
        from_disk: bool = False,
    ) -> None:
        outermost = outermost_blocks(module, block_types)
        inside = {id(part) for block in outermost for part in block.modules()}
        self._rest = _Weights([part for part in module.modules() if id(part) not in inside])
        self._blocks = [_Weights(block.modules()) for block in outermost]
        self._resident = self._blocks[:resident_blocks]
        self._device = device
        self._transfer = transfer_to(device)
        self._from_disk = from_disk
        if from_disk:
            _give_back_pages(module)
        else:
            self._transfer.prepare(self._blocks)
        self._last: _Weights | None = None
        self._next: dict[_Weights, _Weights] = {}
        self._owners: dict[tuple[int, str], tuple[_Weights, int]] | None = None  # where each weight is kept
        for block, weights in zip(outermost, self._blocks, strict=True):
            block.register_forward_pre_hook(self._before(weights))
            block.register_forward_hook(self._after(weights))

    def arrive(self) -> None:
        """Copies what is resident to the device."""
        for weights in (self._rest, *self._resident):
            if not weights.present:
                self._transfer.copy(weights)
                self._transfer.wait_for(weights)

    def leave(self) -> None:
        """Drops everything that is on the device. The weights on the host were never changed."""
        self._transfer.finish()
        for weights in (self._rest, *self._blocks):
            weights.drop()
        self._last = None

    def put(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        """Puts a tensor in the place of a weight on the host. Nothing is on the device: `leave` was called."""
        if self._owners is None:
            self._owners = {
                (id(part), own): (weights, place)
                for weights in (self._rest, *self._blocks)
                for place, (part, own, _) in enumerate(weights.host)
            }
        weights, place = self._owners[id(module), name]
        weights.replace(place, tensor)

    def renew(self) -> None:
        """Looks the tensors on the host up again, where layers have got others. Nothing is on the device."""
        for weights in (self._rest, *self._blocks):
            weights.look_up()
        self._owners = None
        if not self._from_disk:
            self._transfer.prepare(self._blocks)

    @property
    def present_blocks(self) -> int:
        """The number of blocks whose weights are on the device."""
        return sum(block.present for block in self._blocks)

    def _before(self, block: _Weights) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if self._last is not None:
                self._next[self._last] = block
            for other in self._blocks:  # a guess that was wrong, or a call that failed
                if other is not block and other.present and other not in self._resident:
                    other.drop()
            if not block.present:
                self._transfer.copy(block)
            self._transfer.wait_for(block)
            following = self._next.get(block)
            if self._transfer.looks_ahead and following is not None and not following.present:
                self._transfer.copy(following)
            self._last = block

        return hook

    def _after(self, block: _Weights) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._transfer.has_used(block)
            if block not in self._resident and self._next.get(block) is not block:
                block.drop()

        return hook


def _give_back_pages(module: nn.Module) -> None:
    """Lets each layer give the pages of its published weight back after it was called."""
    for part in module.modules():
        pages = MappedPages.under([*part.parameters(recurse=False), *part.buffers(recurse=False)])
        if pages.parts:
            part.register_forward_hook(lambda *_, pages=pages: pages.give_back())


class _Weights:
    """Parameters and buffers of some modules: those on the host, and whether copies stand in their place."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.present = False
        self._modules = list(modules)
        self.look_up()

    def look_up(self) -> None:
        """Finds the tensors, all of which are on the host."""
        self.host: list[tuple[nn.Module, str, Tensor]] = []
        for module in self._modules:
            self.host += [(module, name, value) for name, value in module.named_parameters(recurse=False)]
            self.host += [(module, name, value) for name, value in module.named_buffers(recurse=False)]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(value.numel() * value.element_size() for _, _, value in self.host)

    def copy_to(self, device: torch.device, *, non_blocking: bool) -> None:
        """Puts copies on `device` in the place of all tensors. A layer may pack its copy in another order."""
        with torch.inference_mode(False), torch.no_grad():
            for module, name, value in self.host:
                copy = torch.empty_like(value, device=device, requires_grad=False)
                copy.copy_(value, non_blocking=non_blocking)
                setattr(module, name, nn.Parameter(copy, False) if isinstance(value, nn.Parameter) else copy)
        self.present = True

    def drop(self) -> None:
        """Puts the tensors on the host back in their place."""
        if self.present:
            for module, name, value in self.host:
                setattr(module, name, value)
        self.present = False

    def replace(self, place: int, tensor: Tensor) -> None:
        """Puts a tensor in the place of one on the host, in memory of the same kind."""
        module, name, value = self.host[place]
        tensor = tensor.pin_memory() if value.is_pinned() else tensor
        kept = nn.Parameter(tensor, False)
        setattr(module, name, kept)
        self.host[place] = module, name, kept

    def pin(self) -> None:
        """Moves the host's tensors into memory that a device can read while the host does something else."""
        pinned = []
        for module, name, value in self.host:
            moved = value.detach().pin_memory()
            kept = nn.Parameter(moved, False) if isinstance(value, nn.Parameter) else moved
            setattr(module, name, kept)
            pinned.append((module, name, kept))
        self.host = pinned


class Transfer:
    """The way of weights to the CPU, whose memory they are in already."""

    looks_ahead = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, blocks: list[_Weights]) -> None:
        """Prepares the host's weights."""

    def copy(self, block: _Weights) -> None:
        """Begins to bring a block's weights to the device."""
        block.present = True

    def wait_for(self, block: _Weights) -> None:
        """Lets the computation wait until the block is there."""

    def has_used(self, block: _Weights) -> None:
        """Notes that the computation with the block is queued."""

    def finish(self) -> None:
        """Waits until nothing is copied or computed any more."""


class CopyingTransfer(Transfer):
    """Copies that are made when a block is called."""

    def copy(self, block: _Weights) -> None:
        """Copies a block's weights to the device."""
        block.copy_to(self.device, non_blocking=False)


class _CudaTransfer(CopyingTransfer):
    """Copies on a stream of their own.

    A block's memory belongs to that stream. It is given to the next block once this one is dropped, so each copy first
    waits for the computation that was queued last.
    """

    looks_ahead = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)
        self._used: torch.cuda.Event | None = None
        self._copied: dict[_Weights, torch.cuda.Event] = {}

    def prepare(self, blocks: list[_Weights]) -> None:
        if available_ram() > sum(block.nbytes for block in blocks) + _HOST_RESERVE:
            for block in blocks:
                block.pin()

    def copy(self, block: _Weights) -> None:
        if self._used is not None:
            self._stream.wait_event(self._used)
        with torch.cuda.stream(self._stream):
            block.copy_to(self.device, non_blocking=True)
            self._copied[block] = self._stream.record_event()

    def wait_for(self, block: _Weights) -> None:
        copied = self._copied.pop(block, None)
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)

    def has_used(self, block: _Weights) -> None:
        self._used = torch.cuda.current_stream(self.device).record_event()

    def finish(self) -> None:
        torch.cuda.synchronize(self.device)
        self._copied.clear()


def transfer_to(device: torch.device) -> Transfer:
    """Returns the way on which weights come to a device."""
    kinds: dict[str, type[Transfer]] = {"cpu": Transfer, "cuda": _CudaTransfer}
    return kinds.get(device.type, CopyingTransfer)(device)


def outermost_blocks(module: nn.Module, block_types: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """Returns the blocks in the module's order, without those inside other blocks."""
    blocks: list[nn.Module] = []
    inside: set[int] = set()
    for part in module.modules():
        if isinstance(part, block_types) and id(part) not in inside:
            blocks.append(part)
            inside |= {id(inner) for inner in part.modules()}
    return blocks
