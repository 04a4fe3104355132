"""The device to compute on: which one, its memory, its dtype, and the switches of torch for it.

torch is imported inside the functions that need it, so that `diffuse doctor` reports also where torch is broken.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from diffuse.device.compile import check_compiler
from diffuse.device.fork import allowed_threads, check_cuda, note_threads
from diffuse.device.gpus import GIB, Gpu, all_gpus, explain_missing_cuda, visible_gpus
from diffuse.device.host import cpu_cores, cpu_has_bfloat16, cpu_name
from diffuse.errors import HardwareError
from diffuse.schema import Compile, Determinism, Device, Dtype, HardwareConfig

log = logging.getLogger(__name__)

_BFLOAT16_CAPABILITY = (8, 0)  # the first CUDA compute capability (Ampere) with bfloat16 arithmetic

_MOST_VRAM_GIB = 10_000  # no card has a tenth of it
_MOST_THREADS = 1024

_default_threads: int | None = None  # torch's own number, which apply() must be able to put back
_callers = 0  # blocks of kept_switches() that have not ended
_kept: tuple[Any, ...] | None = None  # torch's switches before the first apply() in them
_switches_lock = threading.Lock()
_first_free: dict[str, float] = {}  # GiB that each card, by its UUID, had free when this process first looked


@dataclass(frozen=True)
class Hardware:
    """The hardware that a run computes on.

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
    cards: int = 1  # of the kind of `device`, the first of which it is

    @property
    def strict(self) -> bool:
        """True where results must be bitwise the same in every run and batch."""
        return self.deterministic is Determinism.strict

    @property
    def key(self) -> tuple[str, ...]:
        """The settings that a pipeline kept for the next job depends on; free memory changes and is not one of them."""
        return self.device, self.dtype.value, self.deterministic.value, self.compile.value

    def half(self, dtype: Dtype) -> Dtype:
        """Returns the half precision to use for a model's own, `dtype`: float16 on a card without bfloat16 units."""
        too_old = self.capability is not None and self.capability < _BFLOAT16_CAPABILITY
        if dtype is Dtype.bfloat16 and self.device == "cuda" and too_old:
            return Dtype.float16
        return dtype

    def as_record(self) -> dict[str, Any]:
        """Returns the part of a run's record, JSON values only. `threads` is the number that torch uses now."""
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
    """Finds the device that `config` asks for and measures it.

    Args:
        nvml: the module `pynvml`, or an object with its functions.

    Raises:
        HardwareError: the device is not there, or cannot compute in the dtype or compile as asked for.

    The memory that a card has free is measured once a process, before the process uses any of it: a later job of a
    sweep must not count its own cached pipeline as somebody else's and choose ever smaller memory profiles.
    """
    import torch

    if config.vram_gb is not None and not config.vram_gb > 0:
        raise HardwareError(f"hardware.vram_gb={config.vram_gb:g} must be more than 0 GiB; null uses the card's own")
    if config.vram_gb is not None and config.vram_gb > _MOST_VRAM_GIB:
        raise HardwareError(f"hardware.vram_gb={config.vram_gb:g} must be at most {_MOST_VRAM_GIB} GiB")
    if config.threads is not None and config.threads < 1:
        raise HardwareError(f"hardware.threads={config.threads} must be at least 1; null leaves the choice to torch")
    most = max(_MOST_THREADS, cpu_cores()[0])
    if config.threads is not None and config.threads > most:  # OpenMP ends the process where it cannot start them
        raise HardwareError(
            f"hardware.threads={config.threads} must be at most {most}; null leaves the choice to torch"
        )
    device = _device(config.device, nvml)
    if device == "cuda":
        check_cuda()
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
    hw = Hardware(
        device=device,
        dtype=config.dtype,
        deterministic=config.deterministic,
        compile=config.compile,
        threads=allowed_threads(config.threads),
        name=name,
        vram_total_gib=total,
        vram_free_gib=free,
        capability=capability,
        driver=driver,
        cards=torch.cuda.device_count() if device == "cuda" else 1,
    )
    check_dtype(hw)
    check_compiler(hw)
    if config.vram_gb is not None:
        hw = replace(hw, vram_total_gib=config.vram_gb, vram_free_gib=config.vram_gb, planned=True)
    return hw


def apply(hw: Hardware, *, keeps_memory: bool = True) -> None:
    """Sets torch's process-wide switches for `hw`; every switch is set each time, so nothing leaks into the next run.

    Strict: deterministic algorithms (an operation without one raises), float32 products in full precision. Relaxed: the
    fastest algorithms, and TensorFloat-32 products on a card. cuDNN's benchmark mode stays off either way: it chooses
    by stop-watch, which differs between runs, and its trials want memory that a profile may not have.

    Args:
        keeps_memory: on a CPU, what tensors free stays with the process for the next ones; it may not where a budget of
            main memory counts it.
    """
    global _default_threads, _kept
    import torch

    with _switches_lock:
        if _callers and _kept is None:
            _kept = _switches()
            _default_threads = None  # whoever calls may have set another number
    from diffuse.device.allocator import give_freed_memory_back, keep_freed_memory

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
    if not keeps_memory:
        give_freed_memory_back()
    elif hw.device == "cpu":
        keep_freed_memory()
    if _default_threads is None:
        _default_threads = torch.get_num_threads()
    threads = hw.threads or _default_threads
    torch.set_num_threads(threads)
    note_threads(threads)


@contextmanager
def kept_switches() -> Iterator[None]:
    """Puts torch's process-wide switches back after the block to what they were before `apply` in it.

    They are other people's too, where this package is called from Python. Of blocks that overlap, in several threads,
    the last one puts them back.
    """
    global _callers, _kept, _default_threads
    with _switches_lock:
        _callers += 1
    try:
        yield
    finally:
        with _switches_lock:
            _callers -= 1
            if not _callers and _kept is not None:
                _set_switches(*_kept)
                _kept = _default_threads = None


def _switches() -> tuple[Any, ...]:
    import torch

    return (
        torch.get_deterministic_debug_mode(),
        torch.backends.mkldnn.deterministic,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_num_threads(),
    )


def _set_switches(mode: int, mkldnn: Any, cudnn: bool, benchmark: bool, matmul: bool, tf32: bool, threads: int) -> None:
    import torch

    torch.set_deterministic_debug_mode(mode)
    torch.backends.mkldnn.deterministic = mkldnn
    torch.backends.cudnn.deterministic = cudnn
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = tf32
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _device(choice: Device, nvml: Any | None) -> str:
    """Returns the name of the device chosen, or of the first of cuda, mps and cpu that works."""
    import torch

    if choice is Device.cpu:
        return "cpu"
    cuda, complaint = _cuda_works()
    if choice is Device.cuda:
        if not cuda:
            raise HardwareError(f"hardware=cuda, but {explain_missing_cuda(complaint, nvml)}; or use hardware=cpu")
        return "cuda"
    mps = torch.backends.mps.is_available()
    if choice is Device.mps:
        if not mps:
            raise HardwareError(
                f"hardware=mps, but this PyTorch ({torch.__version__} on {platform.system()}) finds no Metal device; "
                "use hardware=auto or hardware=cpu"
            )
        return "mps"
    if cuda:
        return "cuda"
    if complaint or (not mps and all_gpus(nvml)):
        log.warning("computing on the CPU: %s", explain_missing_cuda(complaint, nvml))
    return "mps" if mps else "cpu"


def _cuda_works() -> tuple[bool, str]:
    """Returns whether torch can use CUDA, and its warning otherwise (a driver that is too old, for one)."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        works = torch.cuda.is_available()
    return works, str(caught[0].message).partition(". ")[0].partition("\n")[0] if caught and not works else ""


def _cuda_card(nvml: Any | None) -> Gpu:
    """Returns the card that is torch's device 0: NVML's description, completed by torch's where NVML is silent."""
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


def check_dtype(hw: Hardware) -> None:
    """Raises HardwareError where the device cannot compute in the dtype that is asked for."""
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
