"""How fast a device computes and copies: measured here, or published for a card; and the seconds that follow.

Measured rates are kept in a file beside the outputs, which `diffuse doctor --measure` writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse.device.hardware import Hardware
from diffuse.device.host import cpu_name
from diffuse.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from diffuse.plan.predict import Prediction

RATES_FILE = Path("outputs", "rates.json")
CPU = "cpu"
_SHARE = 0.45  # of a card's published arithmetic that these models reach
_SHORTEST = 0.15  # seconds that a rate is measured
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Card:
    """A card as it is published: GiB, dense TFLOP/s in half precision (sums in float32) and in float32, GB/s to it.

    `capability` is CUDA's compute capability, which says what formats the card computes in.
    """

    vram_gib: float
    half_tflops: float
    float32_tflops: float
    copy_gb_s: float
    capability: tuple[int, int]


# Sources: NVIDIA's data sheets and architecture papers. `copy_gb_s` is what PCI Express 3, 4 or 5 gives in practice.
CARDS: Mapping[str, Card] = {
    "RTX 2080 Ti": Card(11, 53.8, 13.4, 12, (7, 5)),
    "RTX 3060": Card(12, 25.5, 12.7, 24, (8, 6)),
    "RTX 3080": Card(10, 59.5, 29.8, 24, (8, 6)),
    "RTX 3090": Card(24, 71.2, 35.6, 24, (8, 6)),
    "RTX 4060": Card(8, 30.2, 15.1, 12, (8, 9)),
    "RTX 4070": Card(12, 58.3, 29.1, 24, (8, 9)),
    "RTX 4080": Card(16, 97.5, 48.7, 24, (8, 9)),
    "RTX 4090": Card(24, 165.2, 82.6, 24, (8, 9)),
    "RTX 5090": Card(32, 209.5, 104.8, 50, (12, 0)),
    "T4": Card(16, 65.0, 8.1, 12, (7, 5)),
    "L4": Card(24, 121.0, 30.3, 24, (8, 9)),
    "A10": Card(24, 125.0, 31.2, 24, (8, 6)),
    "L40S": Card(48, 362.0, 91.6, 24, (8, 9)),
    "A100": Card(80, 312.0, 19.5, 24, (8, 0)),
    "H100": Card(80, 989.0, 66.9, 50, (9, 0)),
    "H200": Card(141, 989.0, 66.9, 50, (9, 0)),
}


@dataclass(frozen=True)
class Rates:
    """The rates of one device: TFLOP/s by dtype, and GB/s at which weights come to it (None: it has them)."""

    name: str
    tflops: Mapping[str, float]
    copy_gb_s: float | None = None
    measured: bool = True


def card_rates(name: str) -> tuple[Card, Rates]:
    """Returns a card of the table, and its rates.

    Raises:
        ConfigError: it is not in the table.
    """
    names = {each.lower().replace(" ", ""): each for each in CARDS}
    found = names.get(name.lower().replace(" ", "").removeprefix("nvidia").removeprefix("geforce"))
    if found is None:
        raise ConfigError(f"--card {name}: is not known; these are: {', '.join(CARDS)}")
    card = CARDS[found]
    half = card.half_tflops * _SHARE
    tflops = {"float32": card.float32_tflops * _SHARE, "bfloat16": half, "float16": half}
    return card, Rates(found, tflops, card.copy_gb_s, measured=False)


def read_rates(file: Path = RATES_FILE) -> dict[str, Rates]:
    """Returns the measured rates by the name of the device; none where nothing was measured or the file is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): Rates(**values) for name, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_rates(rates: Rates, file: Path = RATES_FILE) -> None:
    """Adds a device's rates to the file."""
    values = {name: asdict(each) for name, each in {**read_rates(file), rates.name: rates}.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def device_name(hw: Hardware) -> str:
    """Returns the name by which a device's rates are kept: Apple's chip is a processor and a card of one name."""
    return f"{hw.name} ({hw.device})" if hw.name else hw.device


def measure_rates(hw: Hardware) -> Rates:
    """Measures how fast a device computes a linear layer and a convolution of these models, and copies to it."""
    import torch

    device = torch.device(hw.device)
    dtypes = [name for name in _DTYPES if hw.device != CPU or name != "float16"]
    with torch.inference_mode():
        tflops = {name: round(_tflops(device, getattr(torch, name)), 4) for name in dtypes}
    copy = None if hw.device == CPU else round(_copy_gb_s(device), 2)
    return Rates(device_name(hw), tflops, copy)


def _tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns TFLOP/s, of a linear layer and a convolution with as much arithmetic each."""
    import torch

    from diffuse.layers.packed import Conv2d, Linear

    width = 320 if device.type == CPU else 1280
    linear = Linear(width, 4 * width).to(device, dtype).requires_grad_(False)
    tokens = torch.randn(1, 2048, width, device=device, dtype=dtype)
    convolution = Conv2d(width, width, 3, padding=1).to(device, dtype).requires_grad_(False)
    pixels = torch.randn(1, width, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    rates = [
        2 * 2048 * 4 * width * width / _seconds(lambda: linear(tokens), device),
        2 * 9 * 1024 * width * width / _seconds(lambda: convolution(pixels), device),
    ]
    return 2 / sum(1 / rate for rate in rates) / 1e12


def _copy_gb_s(device: torch.device) -> float:
    import torch

    host = torch.empty(64 << 20, dtype=torch.uint8)
    host = host.pin_memory() if device.type == "cuda" else host
    return host.numel() / _seconds(lambda: host.to(device, non_blocking=True), device) / 1e9


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds of a call, the mean of as many as take a moment together."""

    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()

    call()
    wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SHORTEST or count < 3:
        call()
        wait()
        count += 1
    return (time.perf_counter() - start) / count


def predicted_seconds(
    prediction: Prediction, rates: Rates | None, host_rates: Rates | None
) -> tuple[dict[str, float], str | None]:
    """Returns the seconds of each phase, or why they are not known.

    Weights are on their way while blocks compute, where they stream; reading them from a disk is not in it.
    """
    components = {component.name: component for component in prediction.components}
    seconds: dict[str, float] = {}
    for phase in prediction.phases:
        seconds[phase.name] = 0.0
        for work in phase.work:
            component = components[work.component]
            on_device = component.place == "device"
            found = rates if on_device else host_rates
            tflops = None if found is None else found.tflops.get(component.dtype)
            if found is None or not tflops:
                where = "this processor" if not on_device or prediction.device == CPU else "the card"
                reason = f"how fast {where} computes in {component.dtype} is not known"
                return {}, f"{reason}: run diffuse doctor --measure, or name a --card"
            compute = work.flops / tflops / 1e12
            copied = work.calls * component.streamed_bytes if on_device else 0
            copies = copied / found.copy_gb_s / 1e9 if copied and found.copy_gb_s else 0.0
            seconds[phase.name] += max(compute, copies)
    return seconds, None


def main_memory_rates(measured: Mapping[str, Rates]) -> Rates | None:
    """Returns the measured rates of this computer's processor."""
    return measured.get(device_name(Hardware(CPU, name=cpu_name())))
