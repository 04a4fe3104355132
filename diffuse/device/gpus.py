"""NVIDIA cards as their driver's library NVML describes them: the physical ones, and those that CUDA may use.

Neither torch nor NVML is imported before it is asked for, so that `diffuse doctor` can report where one is broken.
`nvml` is everywhere the module `pynvml`, or an object with its functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

GIB = 1 << 30  # bytes


@dataclass(frozen=True)
class Gpu:
    """A card as NVML describes it. A field that the driver does not tell is None."""

    index: int
    uuid: str
    name: str
    total_gib: float | None
    free_gib: float | None
    capability: tuple[int, int] | None
    driver: str | None


def all_gpus(nvml: Any | None = None) -> list[Gpu]:
    """Returns every physical NVIDIA card, in NVML's order; none where there is no driver."""
    with _library(nvml) as library:
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
    """Returns the cards that CUDA shows this process, its device 0 first, as `CUDA_VISIBLE_DEVICES` says.

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


def explain_missing_cuda(complaint: str = "", nvml: Any | None = None) -> str:
    """Returns one clause: what was found instead of a card that torch can use, and what to do about it.

    Args:
        complaint: torch's own warning, if it gave one.
    """
    import torch

    cards = all_gpus(nvml)
    names = ", ".join(card.name for card in cards)
    if torch.version.cuda is None:
        there = f"the {names} cannot be used: " if cards else ""
        return f"{there}this PyTorch ({torch.__version__}) is built without CUDA: install a CUDA build"
    if not cards:
        return "no NVIDIA driver answers: install the driver, or give the container access to the card"
    if not visible_gpus(nvml):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides every card ({names}): unset it, or name one"
    reason = complaint or "CUDA does not start"
    return f"the {names} (driver {cards[0].driver}) cannot be used by PyTorch {torch.__version__}: {reason}"


@contextmanager
def _library(nvml: Any | None) -> Iterator[Any | None]:
    """Yields the NVML library, initialised; None where there is none or it does not answer."""
    library: Any = nvml
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
    """Returns the card, or the part of one, with this UUID."""
    with _library(nvml) as library:
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
