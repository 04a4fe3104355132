"""SDXL at 1024 x 1024, 30 steps, on a card that is not here: the schedule of streaming, simulated, beside diffusers'.

    python tests/benchmarks/streaming_schedule.py [--card "RTX 4090"] [--budgets 3 4 6 8 12 16]

What is assumed:
- The card computes at 45% of its published dense rate, in half precision with sums in float32 (`diffuse/plan/rates.py`
  has both), the autoencoder at that of float32. A block's time is its arithmetic divided by that rate; launching
  kernels and norms take none.
- Pinned weights are copied at the published practical rate of its PCI Express, pageable ones at half of that. Copies
  and computation disturb one another in no way, and copies are not split.
- Arithmetic and bytes of each block are those of `diffuse plan`: the real model runs without storage.
- The weights are in main memory, and text encoders and the autoencoder are copied once for a picture wherever anything
  is off the card.

Ours has the levers that are chosen for the budget. The copy of the block that comes next begins when the block before
this one has computed; a block computes when its copy is there; the last block of a call is followed by the first. These
are the waits of `diffuse/device/streaming.py`.

diffusers has the fastest of these whose peak is within the budget too, activations and CUDA's own 0.5 GiB among it:
- `resident`: everything on the card.
- `model`: `enable_model_cpu_offload`, a component at a time, pageable.
- `group`: block-level group offload, a stream, one block of its module lists a group (`down_blocks`, `up_blocks`), two
  groups on the card at once; what is in no list comes with the first group.
- `leaf`: the same at leaf level, where each layer is a group.
- `sequential`: `enable_sequential_cpu_offload`, each layer copied when it is called, pageable, nothing at a time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.device.gpus import GIB
from diffuse.device.streaming import outermost_blocks
from diffuse.errors import ConfigError
from diffuse.plan.live_bytes import Ledger, LiveBytes
from diffuse.plan.make_plan import Setting, open_setting
from diffuse.plan.networks import _networks
from diffuse.plan.predict import Prediction, reserved_bytes

STEPS = 30
PAGEABLE = 0.5  # of the rate of pinned memory
BASE = (
    "model=sdxl",
    "prompt=a cactus",
    "seed=1",
    f"num_inference_steps={STEPS}",
    "tracking=none",
    "model.download=never",
)


@dataclass(frozen=True)
class Part:
    """A block, a layer or a group: its arithmetic in a call, its bytes, and its place in the module's order."""

    flops: int
    nbytes: int
    place: int = 0


def parts_of(network: nn.Module, chosen: Sequence[nn.Module], side: int, batch: int) -> tuple[list[Part], Part]:
    """Follows a call of SDXL's U-Net. Returns the chosen modules in the order of their calls, and what is left."""
    mode, order, flops = LiveBytes(Ledger(), Ledger(), rounded=True), [], {}
    mode.know([*network.parameters(), *network.buffers()])
    hooks, begun = [], []
    for module in chosen:
        hooks.append(module.register_forward_pre_hook(lambda *_: begun.append(mode.flops)))

        def after(module: nn.Module, *_: Any) -> None:
            order.append(module)
            flops[module] = mode.flops - begun.pop()

        hooks.append(module.register_forward_hook(after))
    dtype = next(network.parameters()).dtype
    make = lambda *shape: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    with torch.inference_mode(), mode:
        network(
            make(batch, 4, side // 8, side // 8),
            torch.tensor(1.0, device="meta"),
            make(batch, 77, 2048),
            text_embeds=make(batch, 1280),
            time_ids=make(batch, 6),
        )
    for hook in hooks:
        hook.remove()
    places = {module: place for place, module in enumerate(chosen)}
    parts = [Part(flops[module], nbytes_of(module), places[module]) for module in order]
    rest = Part(mode.flops - sum(part.flops for part in parts), nbytes_of(network) - sum(each.nbytes for each in parts))
    return parts, rest


def grouped(unet: Any, blocks: list[Part], rest: Part) -> tuple[list[Part], Part]:
    """Returns diffusers' groups: the levels of both module lists, each with the blocks in it."""
    names = {module: name for name, module in unet.named_modules()}
    order = [names[block] for block in outermost_blocks(unet, unet.streamed_blocks)]
    groups = []
    for levels in ("down_blocks", "up_blocks"):
        for index, level in enumerate(getattr(unet, levels)):
            flops = sum(each.flops for each in blocks if order[each.place].startswith(f"{levels}.{index}."))
            groups.append(Part(flops, nbytes_of(level)))
    whole = [sum(part.flops for part in (*blocks, rest)), sum(part.nbytes for part in (*blocks, rest))]
    left = Part(whole[0] - sum(g.flops for g in groups), whole[1] - sum(g.nbytes for g in groups))
    return groups, left


def nbytes_of(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))


def streamed(parts: list[Part], rest: Part, resident: int, calls: int, flop_s: float, byte_s: float) -> float:
    """Seconds of some calls under prefetching of one part; the first `resident` of the module's order stay."""
    copy_free = before = now = 0.0  # when the copy stream is free; when the last but one and the last computation end
    ready: dict[int, float] = {}
    sequence = [index for _ in range(calls) for index in range(len(parts))]
    between = rest.flops / len(parts) / flop_s  # what is no block is computed between blocks
    for place, index in enumerate(sequence):
        if parts[index].place >= resident and place not in ready:
            copy_free = max(copy_free, now) + parts[index].nbytes / byte_s
            ready[place] = copy_free
        start = max(now, ready.get(place, 0.0))
        following = sequence[place + 1] if place + 1 < len(sequence) else None
        if following is not None and parts[following].place >= resident:
            copy_free = max(copy_free, before, now) + parts[following].nbytes / byte_s
            ready[place + 1] = copy_free
        before, now = now, start + parts[index].flops / flop_s + between
    return now


def in_turn(parts: list[Part], rest: Part, calls: int, flop_s: float, byte_s: float) -> float:
    """Seconds of some calls where each part is copied, and then computes."""
    everything = [*parts, rest]
    return calls * sum(part.flops / flop_s + part.nbytes / byte_s for part in everything)


class Comparison:
    """The ways of one card."""

    def __init__(self, card: str) -> None:
        self.card = card
        setting, guess = self.plan([])
        assert setting is not None and guess is not None and setting.rates is not None and setting.rates.copy_gb_s
        self.flop_s = setting.rates.tflops["bfloat16"] * 1e12
        self.byte_s = setting.rates.copy_gb_s * 1e9
        self.guess, self.reserved = guess, reserved_bytes(setting.hw)
        (unet,) = (net.module for net in _networks.values() if type(net.module).__name__ == "UNet2DConditionModel")
        batch = 2  # with and without the prompt
        self.blocks = parts_of(unet, outermost_blocks(unet, unet.streamed_blocks), 1024, batch)
        self.groups = grouped(unet, *self.blocks)
        leaves = [each for each in unet.modules() if not [*each.children()] and nbytes_of(each)]
        self.leaves = parts_of(unet, leaves, 1024, batch)
        # Encoding and decoding, which are the same everywhere.
        float32 = setting.rates.tflops["float32"] * 1e12
        self.others = sum(
            work.flops / (float32 if component.dtype == "float32" else self.flop_s)
            for phase in guess.phases
            for work in phase.work
            for component in guess.components
            if component.name == work.component != "unet"
        )
        self.small_bytes = sum(each.nbytes for each in guess.components if each.name != "unet")
        self.unet_bytes = sum(each.nbytes for each in guess.components if each.name == "unet")
        self.resident = self.others + streamed(*self.blocks, 10**6, STEPS, self.flop_s, self.byte_s)

    def plan(self, overrides: list[str]) -> tuple[Setting | None, Prediction | None]:
        """The setting and the prediction; None where the budget is too small."""
        cfg = compose_config([*BASE, *(overrides or ["memory_profile=full_gpu"])])
        setting = open_setting(cfg, self.card)
        request = setting.request(draft_requests(cfg)[0])
        try:
            setting = setting.with_levers(request)
        except ConfigError as error:
            print(f"  {error}")
            return None, None
        return setting, setting.predict(request)

    def ours(self, budget: float) -> tuple[float, str, int] | None:
        """Seconds, the levers, and the predicted peak."""
        setting, guess = self.plan([f"memory_profile.budget_gib={budget:g}"])
        if setting is None or guess is None or setting.choice is None:
            return None
        profile = setting.profile
        resident = profile.resident_blocks if profile.streamed else 10**6
        once = 0.0 if profile.cleanup.value == "none" else self.small_bytes / self.byte_s
        once += 0.0 if profile.cleanup.value == "none" or profile.streamed else self.unet_bytes / self.byte_s
        seconds = streamed(*self.blocks, resident, STEPS, self.flop_s, self.byte_s)
        return self.others + once + seconds, " ".join(setting.choice.levers), setting.choice.device_bytes

    def theirs(self, budget: float) -> tuple[float, str] | None:
        """Seconds of the fastest way that fits, and its name."""
        pageable = self.byte_s * PAGEABLE
        everything = self.unet_bytes + self.small_bytes
        # Activations beside the denoiser's weights, and beside those of the codec and the encoders.
        phases = {phase.name: phase.device_bytes for phase in self.guess.phases}
        live = phases["denoise"] - everything
        decoding = (
            phases["decode"] - everything + max(each.nbytes for each in self.guess.components if each.name != "unet")
        )
        once = self.small_bytes / pageable

        def peak_of(parts: tuple[list[Part], Part], at_once: int) -> float:
            sizes = [part.nbytes for part in parts[0]]
            several = max(sum(sizes[i : i + at_once]) for i in range(len(sizes)))
            return several + parts[1].nbytes + live

        ways: dict[str, tuple[float, Callable[[], float]]] = {
            "resident": (max(phases.values()), lambda: self.resident - self.others),
            "model": (self.unet_bytes + live, lambda: once + self.unet_bytes / pageable + self.resident - self.others),
            "group": (
                peak_of(self.groups, 2),
                lambda: once + streamed(*self.groups, 0, STEPS, self.flop_s, self.byte_s),
            ),
            "leaf": (
                peak_of(self.leaves, 2),
                lambda: once + streamed(*self.leaves, 0, STEPS, self.flop_s, self.byte_s),
            ),
            "sequential": (peak_of(self.leaves, 1), lambda: once + in_turn(*self.leaves, STEPS, self.flop_s, pageable)),
        }
        fits = {}
        for name, (peak, seconds) in ways.items():
            if max(peak, decoding) + self.reserved <= budget * GIB:
                fits[name] = self.others + seconds()
        if not fits:  # its decoder in tiles, which takes no longer here
            fits = {n: self.others + s() for n, (p, s) in ways.items() if p + self.reserved <= budget * GIB}
            fits = {f"{name}, tiles": seconds for name, seconds in fits.items()}
        best = min(fits, key=lambda name: fits[name], default=None)
        return None if best is None else (fits[best], best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", nargs="+", default=["RTX 4090"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[3, 4, 6, 8, 12, 16])
    arguments = parser.parse_args()
    for card in arguments.card:
        start = time.process_time()
        comparison = Comparison(card)
        per_call = comparison.unet_bytes / comparison.byte_s
        computes = (comparison.resident - comparison.others) / STEPS
        print(f"{card}: a call computes for {computes:.3f} s, and all its weights are copied in {per_call:.3f} s")
        print(f"{'budget':>7} {'peak':>6} {'ours':>7} {'to full':>8}  {'diffusers':>9} {'ours to it':>10}  levers")
        for budget in arguments.budgets:
            mine, other = comparison.ours(budget), comparison.theirs(budget)
            if mine is None:
                continue
            seconds, levers, peak = mine
            peer = f"{other[0]:9.2f} {seconds / other[0]:10.2f}" if other else f"{'none':>9} {'':10}"
            name = f" (diffusers: {other[1]})" if other else ""
            full = seconds / comparison.resident
            print(f"{budget:7g} {peak / GIB:6.2f} {seconds:7.2f} {full:8.2f}  {peer}  {levers}{name}", flush=True)
        print(f"{'full':>7} {comparison.guess.device_bytes / GIB:6.2f} {comparison.resident:7.2f} {1:8.2f}")
        print(f"{time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
