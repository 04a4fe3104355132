"""Chooses the levers of a memory profile for a budget: what fits is predicted, and no weight is read for it.

First come levers that change no bit: components that leave the device when their phase ends, and blocks that stream,
of which as many stay as there is room for. Then smaller batches and sequential guidance, and then decoding in tiles.
Nothing is chosen that makes pictures worse, such as weights in fewer bits.

The choice follows from the configuration, the checkpoint's settings and the budget. A run records it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.config.request import RequestDraft
from diffuse.device import host
from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.device.profile import AUTO, CHOSEN, EVERY, MAX_BATCH, cpu_profile, own_fields, profile_batch_size
from diffuse.errors import ConfigError
from diffuse.plan.predict import Prediction, complete_fitted_request, predict, reserved_bytes
from diffuse.schema import (
    Cleanup,
    Compile,
    GenerationRequest,
    GuidanceMode,
    MemoryProfileConfig,
    ReleaseTo,
)

_MOST_STEPS = 8  # that are followed: more than any sampler looks back, and later ones take no more memory
_EVERYTHING_STAYS = "everything stays on the device"
_NOTHING_THERE = "nothing is on the device"
Fields = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A profile that keeps within a budget, or within the memory that is free."""

    profile: MemoryProfileConfig
    levers: tuple[str, ...]  # such as `cleanup=phases`, in the order in which they are taken
    prediction: Prediction
    device_bytes: int  # predicted, with what the device needs for itself
    free_gib: float | None = None  # of the device, where no budget was stated

    def line(self) -> str:
        """Returns the line for the terminal."""
        profile, host_bytes = self.profile, self.prediction.host_bytes
        if self.free_gib is not None:
            needs = f"predicted {_rounded_up(self.device_bytes)} of the device"
            said = f"{' '.join(self.levers)}; {needs if profile.on_device else 'nothing fits there'}"
            return f"memory_profile=auto in {self.free_gib:.3g} GiB free: {said}"
        budget = [] if profile.budget_gib is None else [f"{profile.budget_gib:g} GiB of the device"]
        budget += [] if profile.host_gib is None else [f"{profile.host_gib:g} GiB of main memory"]
        predicted = [] if profile.budget_gib is None else [f"{_rounded_up(self.device_bytes)} of the device"]
        predicted += [] if profile.host_gib is None else [f"{_rounded_up(host_bytes)} of main memory"]
        levers = " ".join(self.levers)
        return f"memory_profile within {' and '.join(budget)}: {levers}; predicted {' and '.join(predicted)}"


def choose_for_draft(
    cfg: DictConfig,
    draft: RequestDraft,
    profiles: Mapping[str, MemoryProfileConfig],
    hw: Hardware,
    checkpoints: Sequence[Checkpoint],
) -> Choice:
    """Returns the choice for the request of a draft; see `choose_levers`.

    Raises:
        ConfigError: the request is wrong, or as `choose_levers`.
    """
    named = cast(MemoryProfileConfig, OmegaConf.to_object(cfg.memory_profile))
    request, _ = complete_fitted_request(cfg, draft, named, hw, checkpoints)
    return choose_levers(cfg, request, named, profiles, hw, checkpoints)


def choose_levers(
    cfg: DictConfig,
    request: GenerationRequest,
    named: MemoryProfileConfig,
    profiles: Mapping[str, MemoryProfileConfig],
    hw: Hardware,
    checkpoints: Sequence[Checkpoint],
) -> Choice:
    """Returns the profile for a request: under `auto` the first that fits, and otherwise `named`, if it fits.

    Fields of `auto` that the user set stay as they are. Where no budget is stated it is the memory that the card has
    free, and what does not fit there runs on the CPU.

    Args:
        named: the configuration's `memory_profile`.
        profiles: those of `conf/memory_profile`, by name.

    Raises:
        ConfigError: there is less memory than the budget says, or nothing fits into it. The message has the least
            budget that works.
    """
    _check_there_is(named, hw)
    chooser = _Chooser(cfg, request, named, profiles, hw, checkpoints)
    return chooser.choose() if chooser.free_gib is None else chooser.choose_for_free_memory(cpu_profile(profiles))


class _Chooser:
    """The search for one request."""

    def __init__(
        self,
        cfg: DictConfig,
        request: GenerationRequest,
        named: MemoryProfileConfig,
        profiles: Mapping[str, MemoryProfileConfig],
        hw: Hardware,
        checkpoints: Sequence[Checkpoint],
    ) -> None:
        self.request, self.named, self.hw = request, named, hw
        self.is_auto = named.name == AUTO
        self.own = own_fields(cfg.memory_profile, profiles) if self.is_auto else {}
        self.own_batch = self.own.get("batch_size") is not None or self.own.get("batch_pixels") is not None
        planned = hw.vram_total_gib if self.is_auto and hw.planned else None
        self.budget = planned if named.budget_gib is None else named.budget_gib
        free = hw.vram_free_gib if self.is_auto and self.budget is None else None
        self.device_gib = self.budget if free is None else free
        self.free_gib = free if named.host_gib is None else None
        followed = _with_few_steps(request)
        self._predict = partial(predict, cfg, followed, hw=hw, checkpoints=checkpoints, repeated=True)
        self._tried: list[Choice] = []

    def choose(self) -> Choice:
        """See `choose_levers`."""
        start = self._start()
        if not self.is_auto:
            choice = self._choice(start, {})
            if not self._fits(choice):
                raise self._refusal()
            return choice
        if (found := self._first_that_fits(start)) is None:
            raise self._refusal()
        return found

    def choose_for_free_memory(self, on_cpu: MemoryProfileConfig) -> Choice:
        """Returns the first choice that fits into the memory that is free, or else the profile `on_cpu`."""
        found = self._first_that_fits(self._start())
        if found is None:
            found = replace(self._choice(replace(on_cpu, **self.own), {}), levers=(on_cpu.name,))
        return replace(found, free_gib=self.free_gib)

    def _first_that_fits(self, start: MemoryProfileConfig) -> Choice | None:
        levels = self._levels(start)
        return next((found for each in levels if (found := self._place(start, each)) is not None), None)

    def _start(self) -> MemoryProfileConfig:
        """Returns the profile without a lever. Its batch is no larger than the request, which is what is predicted."""
        named, request = self.named, self.request
        given = not self.is_auto or self.own_batch
        most = profile_batch_size(named, request.width, request.height) if given else MAX_BATCH
        start = replace(named, batch_size=min(most, request.num_images))
        if self.is_auto:
            on_device = self.own.get("on_device", [EVERY])
            start = replace(start, name=CHOSEN, on_device=on_device, budget_gib=self.budget)
        return start

    def _levels(self, start: MemoryProfileConfig) -> Iterator[Fields]:
        """Yields the levers that may change bits: none of them first."""
        batches: list[Fields] = [{}]
        if not self.hw.strict and not self.own_batch:
            size = start.batch_size or 1
            while size > 1:
                size //= 2
                batches.append({"batch_size": size})
        guidances: list[Fields] = [{}]
        if not self.hw.strict and start.guidance is GuidanceMode.batched:
            guidances.append({"guidance": GuidanceMode.sequential})
        given = self.request.input_image, self.request.last_image, self.request.input_video
        tiled: Fields = {"tiled_decode": True} | ({"tiled_encode": True} if any(given) else {})
        tiles: list[Fields] = [{}, *([] if start.tiled_decode else [tiled])]
        for tile in self._left_to_choose(tiles):
            for guidance in self._left_to_choose(guidances):
                for batch in batches:
                    yield {**batch, **guidance, **tile}

    def _left_to_choose(self, changes: Sequence[Fields]) -> list[Fields]:
        """Returns the changes without what the user set, each once."""
        found: list[Fields] = []
        for each in changes:
            left = {name: value for name, value in each.items() if name not in self.own}
            if left not in found:
                found.append(left)
        return found

    def _placements(self, start: MemoryProfileConfig) -> list[Fields]:
        """Returns the levers that change no bit: each with those before it."""
        phases: Fields = {"cleanup": Cleanup.phases}
        can_stream = bool(start.on_device) and self.hw.compile is not Compile.regional and not start.sharded
        streaming: Fields = {**phases, "streamed": start.streamed or [EVERY]}
        found = [{"resident_blocks": 0}, {**phases, "resident_blocks": 0}]
        if start.streamed or start.resident_blocks:
            found = []
        if can_stream:
            found.append(streaming)
        can_drop = start.release_to is ReleaseTo.host and self.own.get("cleanup") is not Cleanup.none
        if self.named.host_gib is not None and can_drop:
            disk: Fields = {"release_to": ReleaseTo.disk}
            found = [each for one in found for each in (one, *([{**one, **disk}] if "cleanup" in one else []))]
        if start.release_to is ReleaseTo.disk and start.cleanup is Cleanup.none:
            found = [each for each in found if "cleanup" in each]
        return self._left_to_choose(found)

    def _place(self, start: MemoryProfileConfig, level: Fields) -> Choice | None:
        """Returns the first placement that fits together with the levers of `level`."""
        placements = [{**level, **each} for each in self._placements(start)]
        if self.named.host_gib is None and not self._fits(self._choice(start, placements[-1])):
            return None  # the last takes least of the device
        for each in placements:
            choice = self._choice(start, each)
            if self._fits(choice):
                return choice if "resident_blocks" in each else self._with_resident_blocks(choice)
        return None

    def _with_resident_blocks(self, choice: Choice) -> Choice:
        """Returns the choice with as many blocks that stay on the device as fit."""
        if "resident_blocks" in self.own:
            return choice
        least, most = 0, max((each.blocks for each in choice.prediction.components), default=0)
        while least < most:
            middle = (least + most + 1) // 2
            other = self._choice(choice.profile, {"resident_blocks": middle})
            if self._fits(other):
                least, choice = middle, other
            else:
                most = middle - 1
        return choice

    def _choice(self, start: MemoryProfileConfig, changes: Fields) -> Choice:
        profile = replace(start, **changes)
        # A prediction is kept by its profile, and does not depend on its name and its budget.
        guess = self._predict(profile=replace(profile, name=CHOSEN, budget_gib=None, host_gib=None))
        device = guess.device_bytes + (reserved_bytes(self.hw) if guess.device_bytes else 0)
        choice = Choice(profile, tuple(self._levers(profile)), guess, device)
        self._tried.append(choice)
        return choice

    def _fits(self, choice: Choice) -> bool:
        return self._fits_device(choice) and choice.prediction.host_bytes <= _bytes(self.named.host_gib)

    def _fits_device(self, choice: Choice) -> bool:
        return choice.device_bytes <= _bytes(self.device_gib)

    def _levers(self, profile: MemoryProfileConfig) -> Iterator[str]:
        """Yields the levers in words."""
        if not self.is_auto:
            yield profile.name
            return
        if profile.cleanup is Cleanup.none:
            yield _EVERYTHING_STAYS if profile.on_device else _NOTHING_THERE
        else:
            yield f"cleanup={profile.cleanup.value}"
        if profile.release_to is ReleaseTo.disk:
            yield f"release_to={profile.release_to.value}"
        if profile.streamed:
            names = ",".join("'*'" if name == EVERY else name for name in profile.streamed)
            yield f"streamed=[{names}]"
            yield f"resident_blocks={profile.resident_blocks}"
        start = min(MAX_BATCH, self.request.num_images)
        if (profile.batch_size or 1) < start:
            yield f"batch_size={profile.batch_size}"
        if profile.guidance is GuidanceMode.sequential:
            yield f"guidance={profile.guidance.value}"
        for name in ("tiled_decode", "tiled_encode"):
            if getattr(profile, name):
                yield f"{name}=true"

    def _refusal(self) -> ConfigError:
        """Returns the error: the least budget that works, and with what."""
        least = min(self._tried, key=lambda choice: choice.device_bytes)
        field = "memory_profile.budget_gib" if self.named.budget_gib is not None else "hardware.vram_gb"
        budget, needed = self.device_gib, least.device_bytes
        within = [choice for choice in self._tried if self._fits_device(choice)]
        if within:
            least = min(within, key=lambda choice: choice.prediction.host_bytes)
            field, budget, needed = "memory_profile.host_gib", self.named.host_gib, least.prediction.host_bytes
        size = f"{self.request.width} x {self.request.height}"
        if not self.is_auto:
            return ConfigError(
                f"{field}={budget:g}: memory_profile={self.named.name} takes {_rounded_up(needed)} for {size}; give "
                "that, or memory_profile=auto, which chooses what fits"
            )
        return ConfigError(
            f"{field}={budget:g}: is too little for {size}; the least that works is {_rounded_up(needed)}, with "
            f"{' '.join(least.levers)}; give that, or make a smaller picture"
        )


def _with_few_steps(request: GenerationRequest) -> GenerationRequest:
    """Returns the request with fewer steps, which take as much memory; as it is where it says which steps."""
    says = (request.timesteps, request.sigmas, request.strength, request.denoising_end)
    if any(each is not None for each in says):
        return request
    return replace(request, num_inference_steps=min(request.num_inference_steps, _MOST_STEPS))


def _check_there_is(named: MemoryProfileConfig, hw: Hardware) -> None:
    """Raises ConfigError for a budget of more memory than there is."""
    limits = [each for each in (host.total_ram(), host.container_ram_limit()) if each]
    main_memory = min(limits) / GIB if limits else None
    device = main_memory if hw.vram_total_gib is None and hw.device == "cpu" else hw.vram_total_gib
    source = " (hardware.vram_gb)" if hw.planned else ""
    for name, given, there, of in (
        ("budget_gib", named.budget_gib, device, f"the device has {{}}{source}"),
        ("host_gib", named.host_gib, main_memory, "there are {} of main memory"),
    ):
        if given is not None and there is not None and given > there:
            raise ConfigError(
                f"memory_profile.{name}={given:g}: is more than there is; {of.format(f'{there:.4g} GiB')}"
            )


def _bytes(gib: float | None) -> float:
    return math.inf if gib is None else gib * GIB


def _rounded_up(nbytes: int) -> str:
    """Returns a size to three digits, and never less than it is."""
    gib = nbytes / GIB
    digits = max(2 - math.floor(math.log10(gib)), 0) if gib > 0 else 0
    return f"{math.ceil(gib * 10**digits) / 10**digits:.{digits}f} GiB"
