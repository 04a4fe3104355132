"""Stepping down: when memory runs out, a run goes on with less of it, one lever at a time.

A lever is a field of the memory profile. Tiles come first in the image codec, and smaller batches in the denoiser, then
guidance in two calls; what changes no bit comes last, because it costs time for every picture: components that leave
the device between phases, and blocks that stream. A lever stays down for what the same memory makes later.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from diffuse.device.profile import includes
from diffuse.errors import OutOfMemory
from diffuse.schema import Cleanup, GuidanceMode, MemoryProfileConfig

_MESSAGES = (  # of plain RuntimeErrors
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
Result = TypeVar("Result")
_TILES = ("tiled_decode", "tiled_encode")
_CHANGE_BITS = (*_TILES, "batch_size", "guidance")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the device or the computer has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def clear_traceback(error: BaseException) -> None:
    """Drops the calls that an error and its causes ended: their variables, and functions' closures, hold tensors."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        each = rest.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = None
            rest += [each.__cause__, each.__context__]


def explain_shortage(doing: str, compute: Callable[[], Result]) -> Result:
    """Returns the result of `compute`, which can do nothing with less memory.

    No context manager: the frame of its exit would hold the calls that are dropped here.

    Raises:
        OutOfMemory: memory ran out; the error holds no tensors, because a sweep keeps it.
    """
    try:
        return compute()
    except (RuntimeError, MemoryError, OutOfMemory) as error:
        if not (isinstance(error, OutOfMemory) or is_out_of_memory(error)):
            raise
        clear_traceback(error)
        if isinstance(error, OutOfMemory):
            raise OutOfMemory(str(error), error.component, final=True) from error.__cause__
        message = f"memory ran out while {doing}: make a smaller picture or fewer at once, or close other programs"
        raise OutOfMemory(message, final=True) from error


@dataclass(frozen=True)
class Shortage:
    """The place where memory ran out.

    Attributes:
        phase: encode, denoise or decode.
        component: its full name; None between two uses of components.
        loading: its weights were on their way.
        rows: results in the call of a denoiser.
        guided: the denoiser predicts twice, with and without the prompt.
        tileable: the component can work on parts of a picture.
        has_company: other components may be on the device besides this one.
        blocks: that can stream; None where they were not counted yet, 0 where there are none.
    """

    phase: str
    component: str | None
    loading: bool = False
    rows: int = 1
    guided: bool = False
    tileable: bool = False
    has_company: bool = False
    blocks: int | None = 0

    @property
    def own_name(self) -> str:
        """The component's name in its own model, as profiles have it."""
        return (self.component or "").rpartition(".")[2]


class StepDowns:
    """A profile with the levers that are down, and what happened in the current run.

    Attributes:
        profile: the one that was asked for, with less where memory ran out.
        batch_limit: the most results in one call of a denoiser, where a larger batch did not fit.
        events: of this run, as its record has them.
        notes: of this run, a line for each event.
    """

    def __init__(self, profile: MemoryProfileConfig, *, strict: bool) -> None:
        self.profile = profile
        self.batch_limit: int | None = None
        self.events: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._asked, self._strict = profile, strict
        self._place = [0, 0]  # steps of the denoiser, and batches decoded, that have ended
        self._recorded: list[dict[str, Any]] = []

    @property
    def batch_guidance(self) -> bool:
        """Is true where both predictions of guidance are made in one call; strict runs never batch."""
        return self.profile.guidance is GuidanceMode.batched and not self._strict

    def start(self) -> None:
        """Begins a run. Levers stay as they are."""
        self.events, self.notes, self._place = [], [], [0, 0]

    def end_step(self) -> None:
        """Notes that a step of the denoiser has ended."""
        self._place[0] += 1

    def end_decoding(self) -> None:
        """Notes that a batch is decoded."""
        self._place[1] += 1

    def step_down(self, shortage: Shortage) -> str | None:
        """Pulls the next lever that helps. Returns its name, or None where there is none, or the profile forbids it."""
        lever = next(self._levers(shortage), None) if self.profile.step_down else None
        if lever is None:
            return None
        name, value = lever
        self._pull(name, value, shortage.component)
        steps, decoded = self._place
        place = {"phase": shortage.phase, "component": shortage.component, "step": steps, "decoded": decoded}
        self.events.append({**place, "loading": shortage.loading, "lever": name, "value": value})
        self.notes.append(f"memory ran out {self._where(shortage)}; went on with {self._setting(name)}")
        return name

    def replay(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Prepares to do in the next run what a recorded one did that may have changed bits, and at the same places."""
        asked = self._asked
        self.profile = replace(
            self.profile,
            guidance=asked.guidance,
            tiled_decode=asked.tiled_decode,
            tiled_encode=asked.tiled_encode,
        )
        self.batch_limit = None
        self._recorded = [dict(event) for event in events if event["lever"] in _CHANGE_BITS]

    def reach(self) -> None:
        """Pulls the recorded levers that were pulled up to here."""
        while self._recorded and [self._recorded[0]["step"], self._recorded[0]["decoded"]] <= self._place:
            event = self._recorded.pop(0)
            self._pull(event["lever"], event["value"], event["component"])
            self.events.append(event)
            self.notes.append(
                f"as recorded, goes on with {self._setting(event['lever'])} from step {event['step'] + 1}"
            )

    def describe(self) -> str:
        """Returns the levers that are down, as a part of a sentence."""
        now, asked = self.profile, self._asked
        fields = (*_TILES, "guidance", "cleanup", "resident_blocks")
        down = [name for name in fields if getattr(now, name) != getattr(asked, name)]
        if now.streamed != asked.streamed and "resident_blocks" not in down:
            down.append("resident_blocks")
        if self.batch_limit is not None:
            down.insert(0, "batch_size")
        return f", even with {', '.join(map(self._setting, down))}" if down else ""

    def _levers(self, shortage: Shortage) -> Iterator[tuple[str, Any]]:
        """Yields what would need less memory, the first to be taken first."""
        profile = self.profile
        if not shortage.loading:
            tiled = f"tiled_{shortage.phase}"
            if shortage.tileable and tiled in _TILES and not getattr(profile, tiled):
                yield tiled, True
            rows = min(shortage.rows, self.batch_limit or shortage.rows)
            if rows > 1:
                yield "batch_size", -(-rows // 2)
            if shortage.guided and self.batch_guidance:
                yield "guidance", GuidanceMode.sequential.value
        if shortage.has_company and profile.cleanup is Cleanup.none:
            yield "cleanup", Cleanup.phases.value
        if shortage.blocks != 0:
            count = shortage.blocks or 0
            resident = min(profile.resident_blocks, count) if profile.streamed else count
            if includes(profile.streamed, shortage.own_name):
                if resident:
                    yield "resident_blocks", resident // 2
            else:
                yield "resident_blocks", min(resident, count // 2)

    def _pull(self, name: str, value: Any, component: str | None) -> None:
        profile = self.profile
        if name in _TILES:
            decode, encode = (getattr(profile, each) or each == name for each in _TILES)
            self.profile = replace(profile, tiled_decode=decode, tiled_encode=encode)
        elif name == "batch_size":
            self.batch_limit = int(value)
        elif name == "guidance":
            self.profile = replace(profile, guidance=GuidanceMode(value))
        elif name == "cleanup":
            self.profile = replace(profile, cleanup=Cleanup(value))
        else:
            assert component is not None
            streamed, own_name = list(profile.streamed), component.rpartition(".")[2]
            if not includes(streamed, own_name):
                streamed.append(own_name)
            self.profile = replace(profile, streamed=streamed, resident_blocks=value)

    def _where(self, shortage: Shortage) -> str:
        if shortage.loading:
            return f"while the weights of the {shortage.component} were loaded"
        place = f"at step {self._place[0] + 1}" if shortage.phase == "denoise" else f"while {shortage.phase[:-1]}ing"
        return place if shortage.component is None else f"in the {shortage.component} {place}"

    def _setting(self, name: str) -> str:
        if name == "batch_size":
            return f"memory_profile.batch_size={self.batch_limit}"
        value = getattr(self.profile, name)
        text = str(getattr(value, "value", value))
        if name != "resident_blocks":
            return f"memory_profile.{name}={text.lower()}"
        return f"memory_profile.streamed=[{','.join(self.profile.streamed)}] memory_profile.resident_blocks={text}"
