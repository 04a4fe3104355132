"""Patches: what is put on weights is taken off to the bit, on every way on which weights come to the device."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from memory_profiles import BALANCED, FULL
from torch import Tensor, nn

from diffuse.device import streaming
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.device.streaming import CopyingTransfer
from diffuse.layers.packed import Conv2d, Linear
from diffuse.schema import Dtype, MemoryProfileConfig

WIDTH = 320  # wide enough that a layer packs its weight


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x) + x
        return result


class Net(nn.Module):
    streamed_blocks = (Block,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv2d(4, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.out = Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, 4, h, w]` to `[B, h, w, 4]`."""
        x = self.conv(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.out(x)
        return result


torch.manual_seed(0)
WEIGHTS = {key: value.detach().clone() for key, value in Net().state_dict().items()}


@dataclass
class Shift:
    """A patch that adds to some weights, and counts what it reads."""

    key: str
    by: float
    weights: tuple[str, ...]
    read: list[str] = field(default_factory=list)
    fails: bool = False

    def originals(
        self, keys: Collection[str], device: torch.device, dtype: torch.dtype
    ) -> Iterator[Mapping[str, Tensor]]:
        for key in keys:
            self.read.append(key)
            yield {key: WEIGHTS[key].to(device, dtype).clone()}

    def patched(self, originals: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for key, original in originals.items():
            if self.fails:
                raise OSError("gone")
            yield key, original + self.by


def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
    net = Net().eval().requires_grad_(False)
    net.load_state_dict(WEIGHTS)
    return net.to(device, dtype)


FIRST = ("conv.weight", "blocks.0.linear.weight", "out.weight")
SECOND = ("blocks.0.linear.weight", "blocks.1.linear.weight")
PROFILES = {
    "resident": FULL,
    "phases": BALANCED,
    "streams": replace(FULL, streamed=["*"]),
    "streams, one stays": replace(FULL, streamed=["*"], resident_blocks=1),
}


def memory_of(profile: MemoryProfileConfig, dtype: Dtype = Dtype.auto) -> Memory:
    memory = Memory(replace(profile, on_device=["*"]), Hardware("cpu", dtype=dtype))
    memory.add("net", load, blocks=Net.streamed_blocks)
    memory.add("other", load, blocks=Net.streamed_blocks)
    return memory


def bits(module: nn.Module) -> dict[str, bytes]:
    return {key: value.contiguous().numpy().tobytes() for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "copies", "turns"),
    [(name, False, 17 if name == "resident" else 3) for name in PROFILES]
    + [(name, True, 3) for name in PROFILES if "streams" in name],
)
def test_put_on_changed_and_taken_off_leaves_every_bit(
    name: str, copies: bool, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if copies:
        monkeypatch.setattr(streaming, "transfer_to", CopyingTransfer)
    memory = memory_of(PROFILES[name])
    x = torch.ones(1, 4, 8, 8)

    def result() -> tuple[dict[str, bytes], bytes]:
        with torch.inference_mode():
            with memory.use("other"):
                pass
            with memory.use("net") as net:
                made = net(x).clone()
            return bits(net), made.numpy().tobytes()

    plain = result()
    patches = {
        key: Shift(key, by, keys) for key, by, keys in (("a", 0.5, FIRST), ("b", -0.25, SECOND), ("c", 1.0, FIRST))
    }
    expected = {}
    for turn in range(turns):  # of 6 changes
        for key in ("a", "b", "c", "", "b", ""):
            memory.set_patches({"net": patches[key]} if key else {})
            found = result()
            if not key:
                assert found == plain, turn
            assert expected.setdefault(key, found) == found, (turn, key)
    for key, patch in patches.items():
        for weight, content in expected[key][0].items():
            added = patch.by if weight in patch.weights else 0
            assert content == (WEIGHTS[weight] + added if added else WEIGHTS[weight]).numpy().tobytes(), (key, weight)


def test_only_what_differs_is_read_again() -> None:
    memory, first, second = memory_of(FULL), Shift("a", 0.5, FIRST), Shift("b", 0.25, SECOND)
    for patch in (first, second, first):
        memory.set_patches({"net": patch})
        with memory.use("net"), memory.use("net"):
            pass
    # Of the first: what the second does not change is restored; then weights that the second had changed.
    assert first.read == ["conv.weight", "out.weight", "blocks.0.linear.weight"]
    assert second.read == ["blocks.0.linear.weight", "blocks.1.linear.weight"]


def test_an_equal_patch_is_not_put_on_again() -> None:
    memory = memory_of(FULL)
    memory.set_patches({"net": Shift("a", 0.5, FIRST)})
    with memory.use("net"):
        pass
    again = Shift("a", 0.5, FIRST, fails=True)
    memory.set_patches({"net": again})
    with memory.use("net"):
        pass
    assert not again.read
    assert memory.patch_key("net") == "a"
    assert memory.patch_key("other") == ""


def test_a_patch_that_fails_leaves_no_half_changed_module() -> None:
    memory = memory_of(FULL)
    with memory.use("net") as net:
        plain = bits(net)
    memory.set_patches({"net": Shift("a", 0.5, FIRST, fails=True)})
    with pytest.raises(OSError, match="gone"), memory.use("net"):
        pass
    memory.set_patches({})
    with memory.use("net") as net:
        assert bits(net) == plain
