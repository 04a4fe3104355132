"""The components of a model under a memory profile: which of them are on the device at each moment.

A profile speaks of "the device", whatever the hardware made it: with `hardware=cpu` that is the CPU, and every profile
runs the same way there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from diffuse.device.allocator import Allocator, allocator_of, reset_rss_peak, rss_peak
from diffuse.device.compile import compiler_advice, is_compiler_error
from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.device.patches import Patch, patch_key
from diffuse.device.placement import Load, ManagedModule
from diffuse.device.profile import check_components, includes, profile_batch_size
from diffuse.device.sharding import cards_of, check_sharding
from diffuse.device.step_down import Shortage, StepDowns, clear_traceback, is_out_of_memory
from diffuse.errors import ConfigError, OutOfMemory, RunError
from diffuse.schema import Cleanup, Compile, Dtype, MemoryProfileConfig, ReleaseTo, Storage

_CPU = torch.device("cpu")
_FREED_AT_LEAST = 16 << 20  # bytes: emptying the allocator's cache waits for the device, so it has to free something

Result = TypeVar("Result")


class Memory:
    """The components of one model under one profile.

    Components that the profile has `on_device` run there, in the half precision `half_dtype` if the profile says
    `half`; the others run on the CPU in float32. With `hardware=cpu` everything is float32. `hardware.dtype` overrides
    what runs on the device.

    Args:
        profile: the memory profile.
        hw: the hardware to compute on.
        half_dtype: the model's half precision.
        fallback: the name of the profile to recommend when memory runs out, see `lighter_profile`.
        allocator: in place of the device's own.
    """

    reads_weights: ClassVar[bool] = True  # False where only shapes are wanted

    def __init__(
        self,
        profile: MemoryProfileConfig,
        hw: Hardware,
        half_dtype: Dtype = Dtype.bfloat16,
        fallback: str | None = None,
        allocator: Allocator | None = None,
    ) -> None:
        self.step_downs = StepDowns(profile, strict=hw.strict)  # which memories with a prefix share
        self.hw = hw
        self.half_dtype = half_dtype
        self.fallback = fallback
        self._load_seconds = [0.0]  # a list, because memories with a prefix share it
        self._device = torch.device("cuda", 0) if hw.device == "cuda" else torch.device(hw.device)
        self._allocator = allocator or allocator_of(self._device)
        self._components: dict[str, ManagedModule] = {}
        self._prefix = ""
        self._checked = False
        self.start()

    def with_prefix(self, prefix: str) -> Memory:
        """Returns this memory for a second model, whose components are kept in it under `prefix`.

        Both models share the profile, the components and the clock. A component that the profile names is on the
        device for both models.
        """
        other = copy(self)
        other._prefix = f"{self._prefix}{prefix}."
        return other

    @property
    def profile(self) -> MemoryProfileConfig:
        """The profile, with less of what did not fit since memory ran out."""
        return self.step_downs.profile

    @property
    def batch_guidance(self) -> bool:
        """Is true where predictions with and without the prompt are made in one batch, not in turn."""
        return self.step_downs.batch_guidance

    @property
    def tiled_decode(self) -> bool:
        """Is true where pictures are decoded in tiles."""
        return self.profile.tiled_decode

    @property
    def load_seconds(self) -> float:
        """Seconds since `start()` that were spent reading weights."""
        return self._load_seconds[0]

    def add(
        self,
        name: str,
        load: Load,
        *,
        float32: bool = False,
        tileable: bool = False,
        blocks: tuple[type[nn.Module], ...] = (),
    ) -> None:
        """Declares a component.

        Args:
            load: called with the device and the dtype when the component is first used.
            float32: never compute it in half precision.
            tileable: it can work on parts of an image, which takes less memory; see `memory_profile.tiled_decode`.
            blocks: the classes of its repeated blocks, which can stream; see `memory_profile.streamed`.
        """
        on_device = includes(self.profile.on_device, name)
        if name in self.profile.streamed and not blocks:
            raise ConfigError(f"memory_profile.streamed names {name}, which has no repeated blocks; leave it out")
        device = self._device if on_device else _CPU
        self._components[self._prefix + name] = ManagedModule(
            load,
            on_device,
            device,
            torch.float32 if float32 else self._dtype_on(device),
            tileable,
            compiled=self.hw.compile is Compile.regional,
            deterministic=self.hw.strict,
            streamed_blocks=blocks if on_device and includes(self.profile.streamed, name) else (),
            resident_blocks=self.profile.resident_blocks,
            from_disk=self.profile.release_to is ReleaseTo.disk,
            blocks=blocks,
            cards=cards_of(self.hw) if blocks and includes(self.profile.sharded, name) else (),
        )
        self._checked = False

    def set_patches(self, patches: Mapping[str, Patch]) -> None:
        """Sets what is on each component's weights from its next use on: nothing where `patches` names none."""
        for name, component in self._components.items():
            component.patch = patches.get(name)

    def patch_key(self, name: str) -> str:
        """Tells apart what may be on the component's weights; empty for nothing."""
        return patch_key(self._components[self._prefix + name].patch)

    def batch_size(self, width: int, height: int) -> int:
        """Returns how many images of that size (pixels) are denoised in one batch; 1 in strict mode."""
        if self.hw.strict:
            return 1
        size = profile_batch_size(self.profile, width, height)
        return min(size, self.step_downs.batch_limit or size)

    def device(self, name: str) -> torch.device:
        """Returns where the component runs, and its inputs have to be."""
        return self._components[self._prefix + name].device

    def dtype(self, name: str) -> torch.dtype:
        """Returns the dtype of the component's weights, and of its inputs."""
        return self._components[self._prefix + name].dtype

    def store(self, name: str) -> torch.device | None:
        """Returns where maps in parts are kept that the component does not compute with; None for where it runs."""
        return _CPU if self._components[self._prefix + name].device.type == "cuda" else None

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtype of each component's weights by its name, such as float32."""
        return {name: str(component.dtype).removeprefix("torch.") for name, component in self._components.items()}

    @property
    def quantized(self) -> dict[str, dict[str, Any]]:
        """How the weights of components are stored in fewer bits, and by how much they are off, by their names."""
        return {
            name: {"storage": self.profile.storage.value, "relative_error": float(f"{each.relative_error:.4g}")}
            for name, each in self._components.items()
            if each.relative_error is not None
        }

    def start(self) -> None:
        """Begins a run: memory peaks and `load_seconds` count from here."""
        self._load_seconds[0] = 0.0
        budget = self.profile.budget_gib
        self._allocator.limit(None if budget is None else int(budget * GIB))
        self.step_downs.start()
        self._allocator.reset_peak()
        reset_rss_peak()

    def check(self) -> None:
        """Checks that the profile and this model go together.

        Raises:
            ConfigError: a field names a component that this model has not, a streamed one is not on the device, its
                blocks are to be compiled as well, there are too few cards to spread it over, or the device does not
                know how weights are to be stored.
        """
        check_components(self.profile, list(self._components), self.hw.compile)
        check_sharding(self.profile, self.hw)
        if self.profile.storage is Storage.fp8 and self._device.type == "mps":
            raise ConfigError("memory_profile.storage=fp8 needs a format that mps does not have; use int8 or nf4")
        self._checked = True

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """Yields the component's module, which is on its device during the `with` block.

        Under `cleanup=phases` the components used before leave the device first.

        Raises:
            ConfigError: see `check`.
            OutOfMemory: memory runs out in the block or while loading; see `attempt`.
            RunError: the component cannot be compiled.
            Exception: whatever else the component's loading raises.
        """
        if not self._checked:
            self.check()
        component = self._components[self._prefix + name]
        component.users += 1
        loading = True
        try:
            if self.profile.cleanup is Cleanup.phases:
                self._end_other_phases(component)
            module = self._arrive(component)
            loading = False
            yield module
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                if is_compiler_error(error):
                    raise RunError(compiler_advice(name, error)) from error
                raise
            # The frames that failed hold tensors; what goes on from here needs their memory back.
            module = None
            clear_traceback(error)
            self._release_unused(component)
            raise OutOfMemory(self._out_of_memory(name), self._prefix + name, loading=loading) from error
        finally:
            component.users -= 1
            self._allocator.sample()

    def attempt(
        self, name: str | None, compute: Callable[[], Result], *, phase: str, rows: int = 1, guided: bool = False
    ) -> Result:
        """Returns the result of `compute`. Where memory runs out, one lever of the profile goes down and it is called
        again.

        Args:
            name: the component that it uses; None for what is done between components.
            compute: what it finished, it must keep for the next call.
            phase: encode, denoise or decode.
            rows: results that are in one call of a denoiser.
            guided: the denoiser predicts with and without the prompt.

        Raises:
            OutOfMemory: no lever helps, or `memory_profile.step_down` is off.
        """
        full = None if name is None else self._prefix + name
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError, OutOfMemory) as error:
                loading = False
                if isinstance(error, OutOfMemory):
                    if error.final or error.component != full:
                        raise
                    loading = error.loading
                elif is_out_of_memory(error):
                    self._release_unused(None)
                else:
                    raise
                clear_traceback(error)
                if not self._step_down(self._shortage(name, phase, loading, rows, guided)):
                    raise OutOfMemory(self._out_of_memory(name), full, final=True) from (error.__cause__ or error)
            gc.collect()  # the error and what its frames held are gone only here
            self._empty_cache()

    def reach(self) -> None:
        """Takes up what a recorded run did up to here, see `StepDowns.replay`."""
        self.step_downs.reach()

    def after_step(self, index: int) -> None:
        """Ends denoising step `index`, from 0: empties the allocator's cache when `cleanup_every` says so."""
        self.step_downs.end_step()
        self._allocator.sample()
        every = self.profile.cleanup_every
        if every and (index + 1) % every == 0:
            self._empty_cache()

    def release_all(self) -> None:
        """Drops every module. What is used again is loaded again."""
        for component in self._components.values():
            component.forget()
        gc.collect()  # a module is a web of references to itself
        self._empty_cache()

    def peaks(self) -> dict[str, float]:
        """Returns the peaks since `start()` in GiB: `peak_gib` of the device, 0 on a CPU, and `rss_peak_gib`."""
        return {"peak_gib": self._allocator.peak() / GIB, "rss_peak_gib": rss_peak() / GIB}

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        forced = self.hw.dtype is not Dtype.auto
        if device.type != self._device.type or not (forced or (self.profile.half and device.type != "cpu")):
            return torch.float32
        half = self.hw.dtype if forced else self.hw.half(self.half_dtype)
        if half is Dtype.auto:
            half = self.hw.half(Dtype.bfloat16)
        dtype: torch.dtype = getattr(torch, half.value)
        return dtype

    def _arrive(self, component: ManagedModule) -> Any:
        loading = component.module is None or patch_key(component.patch) != patch_key(component.applied)
        start = time.perf_counter()
        module = component.arrive()
        if loading:
            self._allocator.synchronize()
            self._load_seconds[0] += time.perf_counter() - start
        return module

    def _end_other_phases(self, component: ManagedModule) -> None:
        if self.profile.release_to is ReleaseTo.disk:
            return self._drop_other_phases(component)
        leaving = [
            other
            for other in self._components.values()
            if other is not component and other.on_device and other.present and not other.users
        ]
        for other in leaving:
            other.leave()
        if leaving:
            self._empty_cache()

    def _drop_other_phases(self, component: ManagedModule) -> None:
        others = [other for other in self._components.values() if other is not component and not other.users]
        dropped = [other for other in others if other.module is not None]
        for other in dropped:
            other.forget()
        if dropped:
            gc.collect()  # a module is a web of references to itself
            self._empty_cache()

    def _empty_cache(self) -> None:
        if self._allocator.releasable() >= _FREED_AT_LEAST:
            self._allocator.empty()

    def _release_unused(self, own: ManagedModule | None) -> None:
        """Drops the modules that nobody else uses. `own` is the one that failed."""
        for component in self._components.values():
            if component.users == int(component is own):
                component.forget()
        gc.collect()
        self._empty_cache()

    def _shortage(self, name: str | None, phase: str, loading: bool, rows: int, guided: bool) -> Shortage:
        component = None if name is None else self._components[self._prefix + name]
        if name is None or component is None:
            company = any(other.on_device for other in self._components.values())
            return Shortage(phase, name, has_company=company)
        others = [other for other in self._components.values() if other is not component]
        compiled = self.hw.compile is Compile.regional
        streams = component.on_device and component.blocks and not (compiled or component.cards)
        return Shortage(
            phase,
            self._prefix + name,
            loading,
            rows,
            guided,
            component.tileable,
            has_company=component.on_device and any(other.on_device for other in others),
            blocks=component.block_count if streams else 0,
        )

    def _step_down(self, shortage: Shortage) -> bool:
        """Takes the next lever. Returns whether there was one."""
        lever = self.step_downs.step_down(shortage)
        if lever == "resident_blocks":
            for full, component in self._components.items():
                if component.on_device and includes(self.profile.streamed, full.rpartition(".")[2]):
                    component.streamed_blocks = component.blocks
                    component.resident_blocks = self.profile.resident_blocks
        return lever is not None

    def _out_of_memory(self, name: str | None) -> str:
        """Returns one line: what ran out of memory, and what to do."""
        component = None if name is None else self._components[self._prefix + name]
        device = self._device if component is None else component.device
        where = "the computer" if device == _CPU else f"{self.hw.name or device.type}"
        place = f"in the {name}" if component else "between two components"
        profile = f"memory_profile={self.profile.name}{self.step_downs.describe()}"
        message = f"{where} ran out of memory {place} under {profile}"
        batches = self.profile.batch_size, self.step_downs.batch_limit
        lighter = f"memory_profile={self.fallback}" if self.fallback else "a profile with fewer components on_device"
        ways = ["to close other programs" if device == _CPU else lighter]
        if component is not None and component.tileable and not self.tiled_decode:
            ways.append("memory_profile.tiled_decode=true")
        elif component is not None and not (component.tileable or self.hw.strict or 1 in batches):
            ways.append("memory_profile.batch_size=1")
        return f"{message}: try {', '.join(ways)} or a smaller picture"
