"""Blocks that are spread over several cards. A CPU stands for each of them, or for all but one without storage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.device.sharding import Shards
from diffuse.errors import ConfigError
from diffuse.schema import Cleanup, Compile, MemoryProfileConfig

PROFILE = MemoryProfileConfig(name="sharded", on_device=["*"], sharded=["transformer"], cleanup=Cleanup.phases)
TWO = Hardware("cpu", cards=2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


class Model(nn.Module):
    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.proj_in = nn.Linear(4, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj_in(x)
        for block in self.blocks:
            x = block(x)
        return x * self.scale


def built() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_card_has_about_as_much_and_no_block_is_divided(count: int) -> None:
    cards = [torch.device("cpu")] * count
    module = built()
    expected = module(torch.ones(2, 4))
    shards = Shards(module, (Block,), cards)
    blocks = [shards.places[f"blocks.{index}"] for index in range(6)]
    assert blocks == sorted(blocks) and set(blocks) == set(range(count))
    assert max(map(blocks.count, range(count))) <= -(-6 // count) + 1
    assert shards.places["scale"] == shards.places["proj_in"] == 0
    shards.arrive()
    assert all(hasattr(block, "_hf_hook") for block in module.blocks)
    assert torch.equal(module(torch.ones(2, 4)), expected)
    shards.leave()
    assert {each.device for each in module.parameters()} == {torch.device("cpu")}
    assert not any(hasattr(part, "_hf_hook") for part in module.modules())
    assert torch.equal(module(torch.ones(2, 4)), expected)


def test_each_part_is_on_its_card() -> None:
    module = built()
    shards = Shards(module, (Block,), [torch.device("cpu"), torch.device("meta")])
    shards.arrive()
    there = [{each.device.type for each in block.parameters()} for block in module.blocks]
    assert there == [{"cpu"}] * 3 + [{"meta"}] * 3
    assert module.scale.device.type == module.proj_in.weight.device.type == "cpu"


def test_a_component_leaves_its_cards_with_its_phase() -> None:
    memory = Memory(PROFILE, TWO)
    memory.add("transformer", lambda device, dtype: built(), blocks=(Block,))
    memory.add("vae", lambda device, dtype: nn.Linear(4, 4), blocks=(nn.Linear,))
    expected = built()(torch.ones(1, 4))
    for _ in range(2):
        with memory.use("transformer") as transformer, torch.no_grad():
            assert memory._components["transformer"].present
            assert torch.equal(transformer(torch.ones(1, 4)), expected)
        with memory.use("vae"):
            assert not memory._components["transformer"].present
    assert memory._components["vae"].shards is None


@pytest.mark.parametrize(
    ("profile", "hw", "said"),
    [
        (PROFILE, Hardware("cpu"), "memory_profile.sharded=[transformer]: needs two cards or more, and there is none"),
        (PROFILE, replace(TWO, compile=Compile.regional), "cannot compile blocks on several cards"),
        (replace(PROFILE, on_device=[]), TWO, "sharded names transformer, which memory_profile.on_device does not"),
        (replace(PROFILE, streamed=["*"]), TWO, "streamed and memory_profile.sharded both name transformer"),
        (replace(PROFILE, sharded=["text"]), TWO, "sharded names text, which this model has not; it has transformer"),
    ],
)
def test_what_cannot_be_sharded_is_refused(profile: MemoryProfileConfig, hw: Hardware, said: str) -> None:
    memory = Memory(profile, hw)
    memory.add("transformer", lambda device, dtype: built(), blocks=(Block,))
    with pytest.raises(ConfigError) as caught:
        memory.check()
    assert said in str(caught.value) and "\n" not in str(caught.value)
