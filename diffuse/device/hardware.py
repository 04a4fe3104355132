"""What there is to compute on: the device, its memory through NVML, its number format, and determinism.

torch is imported inside the functions that need it, so that `diffuse doctor` reports also where torch is broken.
"""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from diffuse.errors import HardwareError
from diffuse.schema import Compile, Determinism, Device, Dtype, HardwareConfig

log = logging.getLogger(__name__)

GIB = 1 << 30
_BFLOAT16_CAPABILITY = (8, 0)  # the first CUDA compute capability (Ampere) with bfloat16 arithmetic
_COMPILED_SHAPES = 1024  # of one kind of block, for all pictures that a process makes

# What apply() changes and has to be able to put back, and what each card had free when this process first looked.
_default_threads: int | None = None
_first_free: dict[str, float] = {}


@dataclass(frozen=True)
class Gpu:
    """A card as NVML describes it. What the driver would not tell is None."""

    index: int
    uuid: str
    name: str
    total_gib: float | None
    free_gib: float | None
    capability: tuple[int, int] | None
    driver: str | None


@dataclass(frozen=True)
class Hardware:
    """What a run computes on.

    `device` is "cpu", "cuda" or "mps". `dtype` is `Dtype.auto` unless the configuration forces one. Memory is in GiB
    and None where there is no card; under `hardware.vram_gb` it is the planned card's, and `planned` is true.
    """

    device: str
    dtype: Dtype = Dtype.auto
    deterministic: Determinism = Determinism.relaxed
    compile: Compile = Compile.none
    threads: int | None = None
    name: str = ""
    vram_total_gib: float | None = None
    vram_free_gib: float | None = None
    capability: tuple[int, int] | None = None
    driver: str | None = None
    planned: bool = False

    @property
    def strict(self) -> bool:
        """Whether results must be bitwise the same in every run and batch."""
        return self.deterministic is Determinism.strict

    @property
    def key(self) -> tuple[str, ...]:
        """What a pipeline that is kept for the next job depends on; free memory changes and is not part of it."""
        return self.device, self.dtype.value, self.deterministic.value, self.compile.value

    def half(self, wanted: Dtype) -> Dtype:
        """The half precision to use where a model wants `wanted`: float16 on a card without bfloat16 arithmetic."""
        too_old = self.capability is not None and self.capability < _BFLOAT16_CAPABILITY
        if wanted is Dtype.bfloat16 and self.device == "cuda" and too_old:
            return Dtype.float16
        return wanted

    def as_record(self) -> dict[str, Any]:
        """What belongs in a run's record: JSON values only. `threads` is what torch uses now."""
        import torch

        def rounded(gib: float | None) -> float | None:
            return None if gib is None else round(gib, 2)

        return {
            "device": self.device,
            "name": self.name,
            "dtype": self.dtype.value,
            "deterministic": self.deterministic.value,
            "compile": self.compile.value,
            "threads": torch.get_num_threads(),
            "vram_total_gib": rounded(self.vram_total_gib),
            "vram_free_gib": rounded(self.vram_free_gib),
            "vram_planned": self.planned,
            "capability": None if self.capability is None else ".".join(map(str, self.capability)),
            "driver": self.driver,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if self.device == "cuda" else None,
            "cpu": cpu_name(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "platform": platform.platform(),
        }


def detect(config: HardwareConfig, nvml: Any | None = None) -> Hardware:
    """Find the device that `config` asks for and measure it.

    `nvml` is the module `pynvml`, or an object with its functions. Raises HardwareError where the device is not there
    or cannot compute in the number format asked for.

    What a card has free is measured once a process, before the process uses any of it: a later job of a sweep must not
    count its own cached pipeline as somebody else's and choose ever smaller memory profiles.
    """
    import torch

    if config.vram_gb is not None and not config.vram_gb > 0:
        raise HardwareError(f"hardware.vram_gb={config.vram_gb:g} must be more than 0 GiB; null uses the card's own")
    if config.threads is not None and config.threads < 1:
        raise HardwareError(f"hardware.threads={config.threads} must be at least 1; null leaves the choice to torch")
    device = _device(config.device, nvml)
    if device == "cuda":
        card = _cuda_card(nvml)
        name, capability, driver = card.name, card.capability, card.driver
        total, free = card.total_gib, card.free_gib
        if nvml is None and free is not None:
            free = _first_free.setdefault(card.uuid, free)
    elif device == "mps":
        total = torch.mps.recommended_max_memory() / GIB
        free = total - torch.mps.driver_allocated_memory() / GIB
        name, capability, driver = cpu_name(), None, None
    else:
        name, capability, driver, total, free = cpu_name(), None, None, None, None
    found = Hardware(
        device=device,
        dtype=config.dtype,
        deterministic=config.deterministic,
        compile=config.compile,
        threads=config.threads,
        name=name,
        vram_total_gib=total,
        vram_free_gib=free,
        capability=capability,
        driver=driver,
    )
    _check_dtype(found)
    _check_compiler(found)
    if config.vram_gb is not None:
        found = replace(found, vram_total_gib=config.vram_gb, vram_free_gib=config.vram_gb, planned=True)
    return found


def apply(hw: Hardware) -> None:
    """Set torch's process-wide switches for `hw`; every switch is set each time, so nothing leaks into the next run.

    Strict: deterministic algorithms (an operation without one raises), float32 products in full precision. Relaxed: the
    fastest algorithms, and TensorFloat-32 products on a card. cuDNN's benchmark mode stays off either way: it chooses
    by stop-watch, which differs between runs, and its trials want memory that a profile may not have.
    """
    global _default_threads
    import torch

    from diffuse.device import allocator

    if hw.device == "cuda" and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        # cuBLAS gives the same bits twice only with a workspace of fixed size, chosen before CUDA computes anything. It
        # is set in relaxed runs too, because a strict one may follow in this process.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # The switch of torch.use_deterministic_algorithms(), which would first import the compiler (1.7 s) to tell it too.
    torch.set_deterministic_debug_mode("error" if hw.strict else "default")
    torch.backends.mkldnn.deterministic = hw.strict  # type: ignore[assignment]  # a property of the module's class
    torch.backends.cudnn.deterministic = hw.strict
    torch.backends.cudnn.benchmark = False
    fast = hw.device == "cuda" and not hw.strict
    torch.backends.cuda.matmul.allow_tf32 = fast
    torch.backends.cudnn.allow_tf32 = fast
    if hw.compile is not Compile.none:
        import torch._dynamo.config as tracer
        import torch._inductor.config as compiler

        compiler.deterministic = hw.strict
        # By default the ninth shape of a block would run uncompiled, and a U-Net alone has more.
        tracer.recompile_limit = tracer.accumulated_recompile_limit = _COMPILED_SHAPES
    if hw.device == "cpu":
        allocator.keep_freed()
    if _default_threads is None:
        _default_threads = torch.get_num_threads()
    torch.set_num_threads(hw.threads or _default_threads)


def all_gpus(nvml: Any | None = None) -> list[Gpu]:
    """Every physical NVIDIA card, in NVML's order; none where there is no driver."""
    with _started(nvml) as library:
        if library is None:
            return []
        cards = []
        for index in range(_count(library)):
            try:
                cards.append(_describe(library, library.nvmlDeviceGetHandleByIndex(index), index))
            except library.NVMLError:  # a card that is lost, or kept from this user
                continue
        return cards


def visible_gpus(nvml: Any | None = None, environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The cards CUDA shows this process, its device 0 first, as `CUDA_VISIBLE_DEVICES` says.

    Its entries are indices, UUIDs ("GPU-..." or "MIG-...", which may be shortened); CUDA stops at the first that names
    nothing. Indices are NVML's where CUDA_DEVICE_ORDER=PCI_BUS_ID, and usually otherwise.
    """
    cards = all_gpus(nvml)
    spec = environ.get("CUDA_VISIBLE_DEVICES")
    if spec is None:
        return cards
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in spec.split(",")):
        if entry.isdigit():
            matches = [card for card in cards if card.index == int(entry)]
        elif entry.startswith("MIG-"):
            matches = _by_uuid(entry, nvml)
        else:
            matches = [card for card in cards if entry.startswith("GPU-") and card.uuid.startswith(entry)]
        if len(matches) != 1 or matches[0] in chosen:
            break
        chosen += matches
    return chosen


def why_no_cuda(complaint: str = "", nvml: Any | None = None) -> str:
    """One clause: what was found instead of a card that torch can use, and what to do about it."""
    import torch

    cards = all_gpus(nvml)
    found = ", ".join(card.name for card in cards)
    if torch.version.cuda is None:
        there = f"the {found} cannot be used: " if cards else ""
        return f"{there}this PyTorch ({torch.__version__}) is built without CUDA: install a CUDA build"
    if not cards:
        return "no NVIDIA driver answers: install the driver, or give the container access to the card"
    if not visible_gpus(nvml):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides every card ({found}): unset it, or name one"
    reason = complaint or "CUDA does not start"
    return f"the {found} (driver {cards[0].driver}) cannot be used by PyTorch {torch.__version__}: {reason}"


def cpu_name() -> str:
    """The processor's marketing name where the system tells it, otherwise its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_has_bfloat16() -> bool | None:
    """Whether the processor has bfloat16 arithmetic; None where the system does not tell."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)) if flags else None


def _cpuinfo(field: str) -> str:
    """The first value of `field` in Linux's description of the processors; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _device(asked: Device, nvml: Any | None) -> str:
    """Which device: the one asked for, or the first of cuda, mps and cpu that works."""
    import torch

    if asked is Device.cpu:
        return "cpu"
    cuda, complaint = _cuda_works()
    if asked is Device.cuda:
        if not cuda:
            raise HardwareError(f"hardware=cuda, but {why_no_cuda(complaint, nvml)}; or use hardware=cpu")
        return "cuda"
    mps = torch.backends.mps.is_available()
    if asked is Device.mps:
        if not mps:
            raise HardwareError(
                f"hardware=mps, but this PyTorch ({torch.__version__} on {platform.system()}) finds no Metal device; "
                "use hardware=auto or hardware=cpu"
            )
        return "mps"
    if cuda:
        return "cuda"
    if complaint or (not mps and all_gpus(nvml)):
        log.warning("computing on the CPU: %s", why_no_cuda(complaint, nvml))
    return "mps" if mps else "cpu"


def _cuda_works() -> tuple[bool, str]:
    """Whether torch can use CUDA, and what it complained of (a driver that is too old, for one)."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        works = torch.cuda.is_available()
    return works, str(caught[0].message).partition(". ")[0].partition("\n")[0] if caught and not works else ""


def _cuda_card(nvml: Any | None) -> Gpu:
    """The card that is torch's device 0: NVML's description, completed by torch's own where NVML is silent."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    uuid = str(getattr(properties, "uuid", "") or "")
    # torch knows exactly which card it has; the environment alone does not say how CUDA orders unlike cards.
    matches = [card for card in all_gpus(nvml) if uuid and card.uuid.endswith(uuid)] or visible_gpus(nvml)
    card = matches[0] if matches else Gpu(0, uuid, properties.name, None, None, None, None)
    total, free = card.total_gib, card.free_gib
    if total is None or free is None:
        free, total = (amount / GIB for amount in torch.cuda.mem_get_info(0))
    capability = card.capability or (properties.major, properties.minor)
    return replace(card, total_gib=total, free_gib=free, capability=capability)


def _check_dtype(hw: Hardware) -> None:
    if hw.dtype is Dtype.float16 and hw.device == "cpu":
        raise HardwareError(
            "hardware.dtype=float16 on a CPU computes below 1 GFLOP/s and would not end; "
            "use hardware.dtype=auto, float32 or bfloat16"
        )
    if hw.dtype is Dtype.bfloat16 and hw.device == "cpu" and cpu_has_bfloat16() is False:
        log.warning("hardware.dtype=bfloat16 is far slower than float32 on this processor, which has no bfloat16 unit")
    if hw.half(hw.dtype) is not hw.dtype:
        assert hw.capability is not None  # half() changes a format only for a known, old card
        raise HardwareError(
            f"hardware.dtype=bfloat16 needs compute capability 8.0 and the {hw.name} has "
            f"{'.'.join(map(str, hw.capability))}; use hardware.dtype=auto, float16 or float32"
        )


def _check_compiler(hw: Hardware) -> None:
    """Raise HardwareError where torch cannot compile for the device, and say what it lacks."""
    if hw.compile is Compile.none:
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    way_out = "or use hardware.compile=none"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise HardwareError(
            f"hardware.compile={hw.compile.value} needs a C++ compiler, and there is none: install g++, or name one in "
            f"the environment variable CXX; {way_out}"
        ) from None
    if hw.device == "cuda" and not has_triton():
        raise HardwareError(
            f"hardware.compile={hw.compile.value} needs Triton, which is not there for the {hw.name}: install the "
            f"package triton; {way_out}"
        )


@contextmanager
def _started(nvml: Any | None) -> Iterator[Any | None]:
    """The NVML library, initialised; None where there is none or it does not answer."""
    library: Any | ModuleType | None = nvml
    if library is None:
        try:
            import pynvml  # the module of the package nvidia-ml-py

            library = pynvml
        except ImportError:
            yield None
            return
    try:
        library.nvmlInit()
    except library.NVMLError:
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _count(library: Any) -> int:
    try:
        return int(library.nvmlDeviceGetCount())
    except library.NVMLError:
        return 0


def _by_uuid(uuid: str, nvml: Any | None) -> list[Gpu]:
    """The card, or the part of one, with this UUID."""
    with _started(nvml) as library:
        if library is None:
            return []
        try:
            return [_describe(library, library.nvmlDeviceGetHandleByUUID(uuid), 0)]
        except library.NVMLError:
            return []


def _describe(library: Any, handle: Any, index: int) -> Gpu:
    def ask(function: str, *args: Any) -> Any:
        try:
            answer = getattr(library, function)(*args)
        except library.NVMLError:  # a part of a card (MIG) and some virtual cards do not answer everything
            return None
        return answer.decode() if isinstance(answer, bytes) else answer

    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    return Gpu(
        index=index,
        uuid=ask("nvmlDeviceGetUUID", handle) or "",
        name=ask("nvmlDeviceGetName", handle) or "NVIDIA GPU",
        total_gib=None if memory is None else memory.total / GIB,
        free_gib=None if memory is None else memory.free / GIB,
        capability=None if capability is None else (int(capability[0]), int(capability[1])),
        driver=ask("nvmlSystemGetDriverVersion"),
    )
