"""Shows a plan: as lines for a person, and as JSON values for a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.device.size_limits import Shrunk
from diffuse.plan.budgets import Budget
from diffuse.plan.choose_levers import Choice
from diffuse.plan.predict import ComponentPlan, Prediction, reserved_bytes
from diffuse.schema import GenerationRequest, MemoryProfileConfig
from diffuse.terminal import counted

_TERA, PETA = 1e12, 1e15


@dataclass(frozen=True)
class Plan:
    """All that is said of one request."""

    model: str
    request: GenerationRequest
    profile: MemoryProfileConfig
    hw: Hardware
    card: str | None  # the name of a card that need not be there
    prediction: Prediction
    program_bytes: int  # of main memory, for Python and its libraries
    disk_bytes: int
    download_bytes: int
    sizes_are_exact: bool  # those of files; otherwise they are the weights' alone
    seconds: Mapping[str, float]  # of each phase
    no_seconds: str | None  # why there are none
    rates: str | None  # whose rates they are
    budgets: Sequence[Budget]
    choice: Choice | None = None  # of the levers, where there is a budget to keep
    loras: Sequence[tuple[str, int]] = ()  # LoRA files, and their bytes
    oversize: str | None = None  # why the profile would refuse the size
    shrunk: Shrunk | None = None  # what was asked for, where it was larger

    @property
    def fits(self) -> bool | None:
        """True where the device has room; None where its size is not known. `oversize` has what a profile refuses."""
        return fits(self.hw, self.prediction)

    def as_json(self) -> dict[str, Any]:
        """Returns plain JSON values, sizes in bytes."""
        guess = self.prediction
        request = self.request
        return {
            "kind": "request",
            "model": self.model,
            "request": {
                "width": request.width,
                "height": request.height,
                "num_images": request.num_images,
                "num_inference_steps": request.num_inference_steps,
                "guidance_scale": request.guidance_scale,
                **({} if request.num_frames is None else {"num_frames": request.num_frames, "fps": request.fps}),
            },
            "memory_profile": self.profile.name,
            "levers": None if self.choice is None else list(self.choice.levers),
            "device": self.hw.device,
            "card": self.card,
            "batch_size": guess.batch_size,
            "components": [asdict(component) for component in guess.components],
            "phases": [
                {
                    "name": phase.name,
                    "device_bytes": phase.device_bytes,
                    "host_bytes": phase.host_bytes,
                    "pflop": phase.flops / PETA,
                    "seconds": self.seconds.get(phase.name),
                }
                for phase in guess.phases
            ],
            "weight_bytes": guess.weight_bytes,
            "device_bytes": guess.device_bytes,
            "reserved_bytes": reserved_bytes(self.hw),
            "host_bytes": guess.host_bytes,
            "program_bytes": self.program_bytes,
            "vram_bytes": vram_bytes(self.hw),
            "fits": self.fits,
            "refused": self.oversize,
            **({} if self.shrunk is None else {"shrunk_from": self.shrunk.as_record()}),
            "disk_bytes": self.disk_bytes,
            "download_bytes": self.download_bytes,
            "sizes_are_exact": self.sizes_are_exact,
            **({"loras": [{"source": name, "bytes": size} for name, size in self.loras]} if self.loras else {}),
            "pflop": guess.flops / PETA,
            "seconds": sum(self.seconds.values()) if self.seconds else None,
            "rates": self.rates,
            "budgets": [asdict(budget) for budget in self.budgets],
        }

    def lines(self) -> list[str]:
        """Returns the lines of the report; they fit 100 columns."""
        guess, request = self.prediction, self.request
        pictures = counted(request.num_images, "picture" if request.num_frames is None else "film")
        device = self.card or self.hw.name or self.hw.device
        on = (
            f"a card of {self.hw.vram_total_gib:g} GiB"
            if self.hw.planned and has_card(self.hw) and not self.card
            else device
        )
        size = f"{request.width} x {request.height}"
        if request.num_frames is not None:
            size += f", {counted(request.num_frames, 'frame')} at {request.fps:g} a second"
        size += f", {counted(request.num_inference_steps, 'step')}"
        lines = [f"{self.model}: {pictures}, {size}, memory_profile={self.profile.name} on {on}"]
        lines += [] if self.shrunk is None else [self.shrunk.line()]
        lines += ["", *([] if self.choice is None else [self.choice.line(), ""])]
        lines.append(f"{'component':24} {'parameters':>14} {'weights':>12}  {'dtype':9} where")
        lines += [_component_line(component) for component in guess.components]
        lines += ["", f"{'phase':10} {'device':>12} {'main memory':>12} {'TFLOP':>10} {'seconds':>9}"]
        for phase in guess.phases:
            seconds = self.seconds.get(phase.name)
            lines.append(
                f"{phase.name:10} {_size(phase.device_bytes) if has_card(self.hw) else '-':>12} "
                f"{_size(phase.host_bytes):>12} {_short(phase.flops / _TERA):>10} "
                f"{'-' if seconds is None else f'{seconds:.1f}':>9}"
            )
        lines.append("")
        lines += self._memory_lines()
        lines += storage_lines(guess)
        stored = any(each.full_bytes is not None for each in guess.components)
        about = "" if self.sizes_are_exact else "about "
        download = f"to download {about}{_size(self.download_bytes)}" if self.download_bytes else "nothing to download"
        lines.append(f"disk         {about}{_size(self.disk_bytes)}; {download}")
        lines += [
            f"lora         {name}: {_size(size)}, "
            + (
                "kept beside the stored weights, on top"
                if stored
                else "added to the weights where they are: no second copy"
            )
            for name, size in self.loras
        ]
        lines.append(f"arithmetic   {arithmetic(guess.flops)}, {guess.calls} calls of the denoiser")
        total = sum(self.seconds.values())
        lines.append(f"time         {self.no_seconds or f'{total:.1f} s, by the rates of {self.rates}'}")
        lines += [f"refused      {self.oversize.partition('; ')[0]}"] if self.oversize else []
        if self.budgets:
            lines += ["", "budgets of the device, each with the levers above it:"]
            lines += [
                f"  from {_size(budget.device_bytes + reserved_bytes(self.hw)):>10}  {budget.lever}"
                for budget in self.budgets
            ]
        return lines

    def _memory_lines(self) -> list[str]:
        guess, lines = self.prediction, []
        if has_card(self.hw):
            reserved = f" and {_size(reserved_bytes(self.hw))} of CUDA's own" if reserved_bytes(self.hw) else ""
            verdict = {True: "; fits", False: "; does not fit", None: ""}[self.fits]
            vram = vram_bytes(self.hw)
            room = "" if vram is None else f" {_size(vram)}"
            lines.append(f"device       {_size(guess.device_bytes)} of tensors{reserved}{verdict}{room}")
        program = _size(self.program_bytes)
        lines.append(f"main memory  {_size(guess.host_bytes)} of tensors and {program} of the program")
        return lines


def has_card(hw: Hardware) -> bool:
    """Returns whether the device is not the CPU."""
    return hw.device != "cpu"


def vram_bytes(hw: Hardware) -> int | None:
    """Returns the bytes of the device; None for a CPU, or where nobody knows."""
    return None if hw.vram_total_gib is None or not has_card(hw) else int(hw.vram_total_gib * GIB)


def fits(hw: Hardware, prediction: Prediction) -> bool | None:
    """Returns whether the device has room for a prediction; None where its size is not known."""
    vram = vram_bytes(hw)
    return None if vram is None else prediction.device_bytes + reserved_bytes(hw) <= vram


def storage_lines(guess: Prediction) -> list[str]:
    """Returns a line on what quantized storage saves and costs; none where weights are stored in full."""
    stored = [each for each in guess.components if each.full_bytes is not None]
    if not stored:
        return []
    full, now = sum(each.full_bytes or 0 for each in stored), sum(each.nbytes for each in stored)
    names = ", ".join(each.name for each in stored)
    return [
        f"storage      {stored[0].storage}: {_size(now)} in the place of {_size(full)} ({names})",
        "             pictures change, and each call takes longer, which the time does not say",
    ]


def _component_line(component: ComponentPlan) -> str:
    if component.place == "host":
        where = "main memory"
    elif component.cards > 1:
        where = f"{component.cards} cards, {_size(-(-component.nbytes // component.cards))} on each"
    elif component.blocks:
        where = f"{component.blocks} blocks stream, {component.resident_blocks} stay"
    else:
        where = "device" if component.stays else "device, while its phase lasts"
    kind = component.dtype if component.full_bytes is None else component.storage
    return f"{component.name:24} {component.parameters:>14,} {_size(component.nbytes):>12}  {kind:9} {where}"


def arithmetic(flops: int) -> str:
    """Returns floating-point operations in the unit that reads best."""
    return f"{_short(flops / PETA)} PFLOP" if flops >= PETA else f"{_short(flops / _TERA)} TFLOP"


def _short(value: float) -> str:
    """Returns a number with three digits, and without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.6f}"


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB / 10 else f"{nbytes / (1 << 20):.1f} MiB"
