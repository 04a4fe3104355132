"""What is resident where, and when. The only module that imports accelerate, and the only one that moves modules.

A profile speaks of "the device", whatever the hardware made it: with `hardware=cpu` that is the CPU, and every profile
runs the same way there.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

import torch
from accelerate.hooks import (
    CpuOffload,
    UserCpuOffloadHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from omegaconf import DictConfig, OmegaConf
from torch import nn

from diffuse.device.allocator import allocator_of, reset_rss_peak, rss_peak
from diffuse.device.hardware import GIB, Hardware
from diffuse.errors import ConfigError, RunError
from diffuse.schema import Cleanup, Compile, Dtype, GuidanceMode, MemoryProfileConfig

log = logging.getLogger(__name__)

AUTO = "auto"
EVERY = "*"  # in a profile's on_device: every component the model has
_CPU = torch.device("cpu")
_FREED_AT_LEAST = 16 << 20  # bytes: emptying the allocator's cache waits for the device, so it has to free something

Load = Callable[[torch.device, torch.dtype], nn.Module]


def choose(
    config: MemoryProfileConfig | DictConfig,
    profiles: Mapping[str, MemoryProfileConfig],
    min_vram_gib: Mapping[str, float],
    hw: Hardware,
) -> MemoryProfileConfig:
    """The profile to run under: the one named, or under `auto` the one that asks for most of what the device has free.

    Under `auto`, fields of `config` that differ from the profile `auto` itself were set by the user, and stay set. A
    named profile is obeyed with a warning where it needs more than is free. Raises ConfigError for a threshold whose
    profile does not exist, or where `auto` has no thresholds to go by.
    """
    named: MemoryProfileConfig = OmegaConf.to_object(config) if isinstance(config, DictConfig) else config  # type: ignore[assignment]
    if named.name != AUTO:
        need = min_vram_gib.get(named.name, 0.0)
        if hw.vram_free_gib is not None and need > hw.vram_free_gib:
            log.warning(
                "memory_profile=%s asks for %g GiB and %s has %.1f GiB free; memory_profile=auto would choose %s",
                named.name,
                need,
                hw.name,
                hw.vram_free_gib,
                fitting(profiles, min_vram_gib, hw).name,
            )
        return named
    chosen = fitting(profiles, min_vram_gib, hw)
    log.debug("memory_profile=auto chose %s (%s)", chosen.name, _why(min_vram_gib.get(chosen.name, 0.0), hw))
    plain = profiles.get(AUTO, MemoryProfileConfig(name=AUTO))
    changed = {
        field.name: getattr(named, field.name)
        for field in fields(MemoryProfileConfig)
        if field.name != "name" and getattr(named, field.name) != getattr(plain, field.name)
    }
    return replace(chosen, **changed)


def fitting(
    profiles: Mapping[str, MemoryProfileConfig], min_vram_gib: Mapping[str, float], hw: Hardware
) -> MemoryProfileConfig:
    """What `auto` chooses: of the profiles whose threshold (GiB) is free, the highest; where none is, `cpu_only`."""
    for name in min_vram_gib:
        if name not in profiles:
            near = get_close_matches(name, profiles, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"model.min_vram_gib names the memory profile {name}, which does not exist{hint}")
    if hw.vram_free_gib is not None and not min_vram_gib:
        known = ", ".join(name for name in profiles if name != AUTO)
        raise ConfigError(f"memory_profile=auto needs the model's min_vram_gib, which is empty; name one of {known}")
    fits = [name for name, need in min_vram_gib.items() if hw.vram_free_gib is not None and need <= hw.vram_free_gib]
    if fits:
        return profiles[max(fits, key=lambda name: min_vram_gib[name])]
    frugal = [name for name, profile in profiles.items() if name != AUTO and not profile.on_device]
    if not frugal:
        raise ConfigError(
            "memory_profile=auto found no profile that keeps everything on the CPU; name a memory_profile"
        )
    return profiles["cpu_only" if "cpu_only" in frugal else frugal[0]]


def lighter(
    profile: MemoryProfileConfig, profiles: Mapping[str, MemoryProfileConfig], min_vram_gib: Mapping[str, float]
) -> str | None:
    """The name of the profile to try when `profile` ran out of memory: the next threshold down. None below the last."""
    need = min_vram_gib.get(profile.name, float("inf"))
    below = [name for name in min_vram_gib if min_vram_gib[name] < need and name in profiles]
    return max(below, key=lambda name: min_vram_gib[name], default=None)


def check_size(profile: MemoryProfileConfig, width: int, height: int) -> None:
    """Raise ConfigError for a picture (pixels) larger than the profile is meant for."""
    if profile.max_side is not None and max(width, height) > profile.max_side:
        raise ConfigError(
            f"{width} x {height} is more than memory_profile={profile.name} is meant for, {profile.max_side} a side; "
            "give a smaller width and height, choose a larger profile, or set memory_profile.max_side=null"
        )


class _Offload(CpuOffload):  # type: ignore[misc]  # accelerate carries no types
    """accelerate's hook that keeps a module on the CPU and brings it to the device when it runs.

    Only the arrival differs: accelerate's own imports torch's compiler, which takes longer than a small picture.
    """

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        first = next(module.parameters(), None)
        if first is None or first.device.type != self.execution_device.type:
            module.to(self.execution_device)
        return args, kwargs


@dataclass
class _Component:
    load: Load
    on_device: bool
    device: torch.device
    dtype: torch.dtype
    compile: Compile
    module: nn.Module | None = None
    hook: UserCpuOffloadHook | None = None  # there once the module has left the device for the first time
    present: bool = False  # on its own device now
    users: int = 0

    def arrive(self) -> nn.Module:
        if self.module is None:
            self.module = self.load(self.device, self.dtype)
            if self.compile is Compile.regional:
                _compile_regions(self.module)
        elif not self.present and self.hook is not None:
            # A hook runs by itself before forward() only, and an autoencoder is used through decode().
            self.hook.hook.pre_forward(self.module)
        self.present = True
        return self.module

    def leave(self) -> None:
        """To the CPU's memory. Attaching the hook is the first departure: loading went straight to the device."""
        assert self.module is not None
        if self.hook is None:
            hook = _Offload(execution_device=self.device)
            self.hook = UserCpuOffloadHook(add_hook_to_module(self.module, hook), hook)
        else:
            self.hook.offload()
        self.present = False

    def forget(self) -> None:
        if self.module is not None:
            remove_hook_from_module(self.module)
        self.module, self.hook, self.present = None, None, False


class Memory:
    """The components of one model under one profile.

    Components that the profile has `on_device` run there, in the half precision `half_dtype` if the profile says
    `half`; the others run on the CPU in float32. With `hardware=cpu` everything is float32. `hardware.dtype` overrides
    what runs on the device. `instead` names the profile to recommend when memory runs out, see `lighter`.
    """

    def __init__(
        self,
        profile: MemoryProfileConfig,
        hw: Hardware,
        half_dtype: Dtype = Dtype.bfloat16,
        instead: str | None = None,
    ) -> None:
        self.profile = profile
        self.hw = hw
        self.half_dtype = half_dtype
        self.instead = instead
        self._loading = {"seconds": 0.0}  # since start()
        self.batched_guidance = profile.guidance is GuidanceMode.batched and not hw.strict
        self.tiled_decode = profile.tiled_decode
        self._device = torch.device("cuda", 0) if hw.device == "cuda" else torch.device(hw.device)
        self._allocator = allocator_of(self._device)
        self._components: dict[str, _Component] = {}
        self._prefix = ""
        self._checked = False
        self.start()

    def beside(self, prefix: str) -> Memory:
        """This memory for a second model, whose components stand in it under `prefix`. The profile, what is resident
        and the clock are the same; what the profile says of a component holds for both models' own."""
        other = copy(self)
        other._prefix = f"{self._prefix}{prefix}."
        return other

    @property
    def load_seconds(self) -> float:
        """Since `start()`, spent reading weights."""
        return self._loading["seconds"]

    def add(self, name: str, load: Load, *, float32: bool = False) -> None:
        """Declare a component. `load(device, dtype)` is called when it is first used; `float32`: never in half."""
        on_device = name in self.profile.on_device or EVERY in self.profile.on_device
        device = self._device if on_device else _CPU
        dtype = torch.float32 if float32 else self._dtype_on(device)
        self._components[self._prefix + name] = _Component(load, on_device, device, dtype, self.hw.compile)
        self._checked = False

    def together(self, width: int, height: int) -> int:
        """How many images of that size (pixels) are denoised together: in strict mode each is by itself."""
        return 1 if self.hw.strict else self.profile.together(width, height)

    def device(self, name: str) -> torch.device:
        """Where the component runs, and its inputs have to be."""
        return self._components[self._prefix + name].device

    def dtype(self, name: str) -> torch.dtype:
        """The format of the component's weights, and of its inputs."""
        return self._components[self._prefix + name].dtype

    @property
    def dtypes(self) -> dict[str, str]:
        """Component -> the name of its weights' format, such as float32."""
        return {name: str(part.dtype).removeprefix("torch.") for name, part in self._components.items()}

    def start(self) -> None:
        """Begin a run: memory peaks and `load_seconds` count from here."""
        self._loading["seconds"] = 0.0
        self._allocator.reset_peak()
        reset_rss_peak()

    def check(self) -> None:
        """Raise ConfigError where the profile's `on_device` names a component that this model has not."""
        for name in self.profile.on_device:
            if name != EVERY and name not in self._components:
                known = ", ".join(self._components)
                raise ConfigError(
                    f"memory_profile.on_device names {name}, which this model has not; it has {known} ({EVERY} for all)"
                )
        self._checked = True

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """The component's module, on its device, for the time of the `with` block.

        Under `cleanup=phases` the components used before leave the device first. Raises RunError when memory runs out
        in the block or while loading, and whatever the component's loading raises.
        """
        if not self._checked:
            self.check()
        component = self._components[self._prefix + name]
        component.users += 1
        try:
            if self.profile.cleanup is Cleanup.phases:
                self._end_other_phases(self._prefix + name)
            loading = component.module is None
            began = time.perf_counter()
            module = component.arrive()
            if loading:
                self._allocator.synchronize()
                self._loading["seconds"] += time.perf_counter() - began
            yield module
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                if _is_of_compiler(error):
                    raise RunError(self._uncompiled(name, error)) from error
                raise
            # The frames that failed hold tensors; a sweep that goes on to its next job needs their memory back.
            traceback.clear_frames(error.__traceback__)
            self.release_all()
            raise RunError(self._advice(name, component.device)) from error
        finally:
            component.users -= 1
            self._allocator.sample()

    def after_step(self, index: int) -> None:
        """After denoising step `index`, from 0: empties the allocator's cache when `cleanup_every` says so."""
        self._allocator.sample()
        every = self.profile.cleanup_every
        if every and (index + 1) % every == 0:
            self._empty_cache()

    def release_all(self) -> None:
        """Let go of every module. What is used again is loaded again."""
        for component in self._components.values():
            component.forget()
        gc.collect()  # a module is a web of references to itself
        self._empty_cache()

    def peaks(self) -> dict[str, float]:
        """Since `start()`, in GiB: `peak_gib` allocated on the device (0 on a CPU), `rss_peak_gib` of the process."""
        return {"peak_gib": self._allocator.peak() / GIB, "rss_peak_gib": rss_peak() / GIB}

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        on_device = device.type == self._device.type
        forced = self.hw.dtype is not Dtype.auto
        if not on_device or not (forced or (self.profile.half and device.type != "cpu")):
            return torch.float32
        wanted = self.hw.dtype if forced else self.hw.half(self.half_dtype)
        if wanted is Dtype.auto:
            wanted = self.hw.half(Dtype.bfloat16)
        dtype = getattr(torch, wanted.value)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def _end_other_phases(self, name: str) -> None:
        left = False
        for other, component in self._components.items():
            if other != name and component.on_device and component.present and not component.users:
                component.leave()
                left = True
        if left:
            self._empty_cache()

    def _empty_cache(self) -> None:
        if self._allocator.releasable() >= _FREED_AT_LEAST:
            self._allocator.empty()

    def _uncompiled(self, name: str, error: RuntimeError) -> str:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".:")
        return f"the {name} could not be compiled ({reason}): use hardware.compile=none"

    def _advice(self, name: str, device: torch.device) -> str:
        where = "the computer" if device == _CPU else f"{self.hw.name or device.type}"
        used = f"{where} ran out of memory in the {name} under memory_profile={self.profile.name}"
        if device == _CPU:
            return f"{used}: make a smaller picture, or close other programs"
        ways = [f"memory_profile={self.instead}" if self.instead else "a profile with fewer components on_device"]
        if name == "vae" and not self.tiled_decode:
            ways.append("memory_profile.tiled_decode=true")
        elif name != "vae" and self.profile.batch_size != 1 and not self.hw.strict:
            ways.append("memory_profile.batch_size=1")
        return f"{used}: try {', '.join(ways)} or a smaller picture"


def _compile_regions(module: nn.Module) -> None:
    """Compiles, when first called, each block whose class says that it is `compiled` as one.

    A block's weights are arguments of the code, which therefore serves all blocks of a class and a shape, and goes on
    serving after a module has left the device and come back. Nothing around the blocks is compiled, so that hooks, and
    whatever else is not arithmetic, stay as they are. Shapes are constants in the code: a new one is compiled anew.
    """
    # Kernels of convolutions, once rather than in the code at each call.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which its stub leaves out
    for block in module.modules():
        if getattr(type(block), "compiled", False):
            block.compile(dynamic=False)


def _is_of_compiler(error: RuntimeError) -> bool:
    compiler = sys.modules.get("torch._dynamo.exc")  # which takes long to import where nothing is compiled
    return compiler is not None and isinstance(error, compiler.TorchDynamoException)


def _is_out_of_memory(error: RuntimeError) -> bool:
    said = (
        "MPS backend out of memory",
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough",
    )
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)


def _why(need: float, hw: Hardware) -> str:
    if hw.vram_free_gib is None:
        return "no card"
    return f"it asks for {need:g} GiB, {'planned' if hw.planned else 'free'} are {hw.vram_free_gib:.1f}"
