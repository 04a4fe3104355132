"""The memory of a device under a profile, as it would be: components without storage, and the bytes of each.

It stands in the place of `diffuse.device.memory.Memory`, and keeps the same rules: which component arrives when, which
ones leave, and which blocks of a streamed one are there. A component's call is followed once for each shape; after that
its peaks are known, block by block, under any profile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from diffuse.device.allocator import Allocator
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.device.placement import ManagedModule
from diffuse.device.streaming import outermost_blocks
from diffuse.layers.packed import packed_bytes
from diffuse.layers.quantized import quantized_layers
from diffuse.plan.live_bytes import Call, Ledger, LiveBytes, describe, make_anew, specify
from diffuse.plan.networks import Network, Plain, network, own_bytes, tensor_bytes
from diffuse.schema import Cleanup, Dtype, MemoryProfileConfig, ReleaseTo

_META = torch.device("meta")
_ROWS_READ = 16 << 20  # bytes of a table's pages at most that the tokens of two prompts lie in


@dataclass
class Residence:
    """A component's bytes, and which of them are where."""

    network: Network
    nbytes: int  # of all weights
    block_bytes: list[int] = field(default_factory=list)  # of the device's copies, where it streams
    rest_bytes: int = 0  # of the device's copies outside blocks
    resident: int = 0  # blocks that stay on the device
    called: set[int] | None = None  # blocks since it came, where copies are made at the first call; None where at once
    loaded: bool = False
    present: bool = False
    packed_bytes: int = 0  # of the largest weight that is packed while the published one is still there
    copied_bytes: int | None = None  # in main memory, where it streams from the disk
    read_bytes: int = 0  # at once of what streams from the disk, while a layer or a block is copied
    cards: int = 1  # that it is spread over, of which each has about as much
    whole_bytes: int = 0  # of the largest weight that is read in full, to be stored in fewer bits

    @property
    def streams(self) -> bool:
        """True where blocks pass over the device."""
        return bool(self.block_bytes)

    @property
    def held_bytes(self) -> int:
        """The bytes of its weights in one of both memories once it is loaded."""
        held = self.nbytes if self.copied_bytes is None else self.copied_bytes
        return -(-held // self.cards)

    def go(self) -> None:
        """Takes the component off the device."""
        self.present = False
        if self.called is not None:
            self.called.clear()

    def device_bytes(self, block: int | None, looks_ahead: bool) -> int:
        """Returns the bytes of a streamed component's copies while `block` computes, or between two blocks (None)."""
        there = {index for index in range(self.resident) if self.called is None or index in self.called}
        if block is not None:
            there.add(block)
            if looks_ahead:
                there.add((block + 1) % len(self.block_bytes))
        return self.rest_bytes + sum(self.block_bytes[index] for index in there)


@dataclass
class PhasePeak:
    """The most bytes of one phase, and its floating-point operations by component.

    `total` is that of both memories at one moment, which is the main memory's where the device is the CPU.
    """

    device: int = 0
    host: int = 0
    total: int = 0
    flops: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


class PlannedMemory(Memory):
    """The components of one model under one profile, without their weights.

    Args:
        build: returns how a component's module is made without storage, by its full name.
        phase: returns the name of the phase of a component's call, by its full name and method.
        copied: returns the bytes that a component's weights take in main memory beside what stays in their file, by
            its full name and module.
    """

    reads_weights: ClassVar[bool] = False

    def __init__(
        self,
        profile: MemoryProfileConfig,
        hw: Hardware,
        half_dtype: Dtype,
        build: Callable[[str], Plain],
        phase: Callable[[str, str], str],
        copied: Callable[[str, nn.Module], int],
    ) -> None:
        self.residences: dict[str, Residence] = {}
        self.phases: dict[str, PhasePeak] = {}
        self._build, self._phase, self._copied = build, phase, copied
        self._places = {on_device: Ledger(on_rise=self._note) for on_device in (True, False)}
        self._weights = {True: 0, False: 0}  # bytes on the device, and on the host
        self._current: list[str] = []  # a list, because memories with a prefix share it
        self._repeated = False
        self._in_use: list[str] = []  # components, some of them within the use of another
        self.looks_ahead = hw.device == "cuda"
        self.mode = LiveBytes(self._places[False], self._places[False], rounded=hw.device == "cuda")
        super().__init__(profile, hw, half_dtype, allocator=Allocator())

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follows what is computed in the block."""
        self._current.append("encode")
        with self.mode:
            yield

    def device(self, name: str) -> torch.device:
        """Returns the meta device. What is moved to it next counts where the component would be."""
        self.mode.ledger = self._places[self._components[self._prefix + name].on_device]
        return _META

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """Yields what stands in for the component's module."""
        if not self._checked:
            self.check()
        full = self._prefix + name
        component = self._components[full]
        if self.profile.cleanup is Cleanup.phases:
            self._end_phases_of([name for name in self.residences if name != full and name not in self._in_use])
        residence = self.residence(full)
        self._in_use.append(full)
        try:
            with self.mode.counting_in(self._places[component.on_device]):
                yield _PlannedModule(partial(self._call, full, component, residence), residence.network.module)
        finally:
            self._in_use.pop()

    def load_all(self) -> None:
        """Brings all components, as an earlier run does, and lets those go that the profile does not keep.

        From here on a layer's weight counts twice while it is packed anew.
        """
        self._repeated = True
        for full, component in self._components.items():
            self._bring(component, self.residence(full))
        if self.profile.cleanup is Cleanup.phases:
            self._end_phases_of(list(self.residences))

    def start(self) -> None:
        """Does nothing: the peaks count from the beginning."""

    def after_step(self, index: int) -> None:
        """Does nothing: a cache that is emptied is no tensor."""

    def peaks(self) -> dict[str, float]:
        """Returns nothing: see `phases`."""
        return {}

    def component(self, full: str) -> ManagedModule:
        """Returns what was declared of a component by its full name."""
        return self._components[full]

    def residence(self, full: str) -> Residence:
        """Returns the bytes of a component by its full name."""
        if full not in self.residences:
            component = self._components[full]
            self.residences[full] = self._measure(full, network(self._build(full), component.dtype), component)
        return self.residences[full]

    def _measure(self, full: str, net: Network, component: ManagedModule) -> Residence:
        stored = [math.prod(each.shape) for each in quantized_layers(net.module)]
        result = Residence(
            net,
            tensor_bytes(net.tensors),
            whole_bytes=max(stored, default=0) * torch.float32.itemsize,
            cards=max(len(component.cards), 1),
        )
        if component.streamed_blocks:
            blocks = outermost_blocks(net.module, component.streamed_blocks)
            copied = packed_bytes if self.hw.device == "cpu" else own_bytes
            inside = {id(part) for block in blocks for part in block.modules()}
            result.block_bytes = [sum(map(copied, block.modules())) for block in blocks]
            result.rest_bytes = sum(copied(part) for part in net.module.modules() if id(part) not in inside)
            result.resident = min(component.resident_blocks, len(blocks))
            result.called = set() if self.hw.device == "cpu" else None
            if component.from_disk:
                result.copied_bytes = min(self._copied(full, net.module), result.nbytes)
                mapped = result.nbytes - result.copied_bytes
                result.read_bytes = min(self._read_at_once(net.module, blocks), mapped)
        elif self.hw.device == "cpu" or not component.on_device:
            result.packed_bytes = max(map(packed_bytes, net.module.modules()), default=0)
        return result

    def _read_at_once(self, module: nn.Module, blocks: Sequence[nn.Module]) -> int:
        """Returns the bytes of a file that are mapped at once: of a layer that is packed, or of blocks on their way.

        Of an embedding only the pages of some rows are read.
        """
        layers = []
        for each in module.modules():
            own = own_bytes(each)
            # A convolution's weight is copied twice on its way into its packed order, as measured.
            twice = packed_bytes(each) if isinstance(each, nn.Conv2d) else 0
            layers.append(min(own, _ROWS_READ) if isinstance(each, nn.Embedding) else own + twice)
        if self.hw.device == "cpu":
            return max(layers, default=0)
        whole = [tensor_bytes([*block.parameters(), *block.buffers()]) for block in blocks]
        return (1 + self.looks_ahead) * max(whole, default=0)

    def _bring(self, component: ManagedModule, residence: Residence) -> None:
        """Loads a component, or brings it back to the device."""
        if not residence.loaded:
            on_device = component.on_device and not residence.streams
            self._weights[on_device] += residence.held_bytes
            self._note(residence.whole_bytes, on_device=on_device)
        elif not residence.present and not residence.streams:
            self._weights[False] -= residence.nbytes
            self._weights[True] += residence.held_bytes
        residence.loaded = residence.present = True
        self._note()

    def _end_phases_of(self, names: Sequence[str]) -> None:
        for name in names:
            component, residence = self._components[name], self.residences[name]
            if self.profile.release_to is ReleaseTo.disk:
                self._drop(component, residence)
            elif component.on_device:
                self._leave(residence)

    def _drop(self, component: ManagedModule, residence: Residence) -> None:
        """Takes a component out of both memories."""
        if residence.loaded:
            self._weights[component.on_device and residence.present and not residence.streams] -= residence.held_bytes
        residence.loaded = False
        residence.go()
        self._note()

    def _leave(self, residence: Residence) -> None:
        """Moves a component to the host, where a streamed one is already."""
        if residence.present and not residence.streams:
            self._weights[True] -= residence.held_bytes
            self._weights[False] += residence.nbytes
        residence.go()
        self._note()

    def _note(self, live: int = 0, copies: int = 0, on_device: bool = False, waiting: int = 0) -> None:
        """Updates the phase's peaks, with `live` bytes in the component that computes, `copies` on the device, and
        `waiting` bytes that the component has on the host."""
        if not self._current:
            return
        peak = self.phases.setdefault(self._current[-1], PhasePeak())
        copies = max(copies, self._standing_bytes())
        device = self._weights[True] + self._places[True].now + copies + (live if on_device else 0)
        host = self._weights[False] + self._places[False].now + (0 if on_device else live) + waiting
        peak.device, peak.host = max(peak.device, device), max(peak.host, host)
        peak.total = max(peak.total, device + host)

    def _standing_bytes(self, without: Residence | None = None) -> int:
        """Returns the bytes of the device's copies of streamed components while none of their blocks computes."""
        return sum(
            each.device_bytes(None, self.looks_ahead)
            for each in self.residences.values()
            if each.present and each.streams and each is not without
        )

    def _call(
        self,
        full: str,
        component: ManagedModule,
        residence: Residence,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Follows a call of a component's method, or repeats what is known of it. Returns its result."""
        self._current[-1] = self._phase(full, method)
        self._bring(component, residence)
        net = residence.network
        blocks = tuple(component.streamed_blocks) or getattr(type(net.module), "streamed_blocks", ())
        key = method, repr(describe((args, dict(kwargs)))), self.looks_ahead
        calls_back = any(map(callable, (*args, *kwargs.values())))  # which has effects beside the result
        if calls_back or key not in net.calls:
            self.mode.know(net.tensors)
            net.calls[key] = follow(self.mode, net.module, outermost_blocks(net.module, blocks), method, args, kwargs)
        call = net.calls[key]
        others = self._standing_bytes(without=residence)
        for block, live in call.segments:
            if residence.called is not None and block is not None:
                residence.called.add(block)
            copies = residence.device_bytes(block, self.looks_ahead) if residence.streams else 0
            packed = residence.packed_bytes if self._repeated else 0
            self._note(live + packed, copies + others, component.on_device, call.host + residence.read_bytes)
        phase = self.phases[self._current[-1]]
        phase.flops[full] = phase.flops.get(full, 0) + call.flops
        phase.calls[full] = phase.calls.get(full, 0) + 1
        return make_anew(call.result)


class _PlannedModule:
    """Stands in for a module: each of its methods is followed."""

    def __init__(self, call: Callable[[str, tuple[Any, ...], Mapping[str, Any]], Any], module: Any) -> None:
        self._call = call
        self.config = getattr(module, "config", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call("__call__", args, kwargs)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._call(method, args, kwargs)


def follow(
    mode: LiveBytes,
    module: nn.Module,
    blocks: Sequence[nn.Module],
    method: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Call:
    """Calls a method of a module without storage. Returns its operations, and its peak in and between `blocks`."""
    call, ledger = Call(), Ledger()

    def end_segment(block: int | None) -> None:
        call.segments.append((block, ledger.peak))
        ledger.peak = ledger.now

    hooks = []
    for index, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(lambda *_: end_segment(None)))
        hooks.append(block.register_forward_hook(lambda *_, index=index: end_segment(index)))
    before = mode.flops
    outer, mode.host = mode.host, Ledger()
    try:
        with mode.counting_in(ledger):
            result = getattr(module, method)(*args, **kwargs)
            call.result = specify(result)
    finally:
        call.host, mode.host = mode.host.peak, outer
        for hook in hooks:
            hook.remove()
    end_segment(None)
    call.flops = mode.flops - before
    return call
