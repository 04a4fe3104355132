"""hardware.compile: blocks are compiled once for every shape, whatever becomes of the module, and compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import command
import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from diffuse.config import compose as configuration
from diffuse.config import request as validation
from diffuse.device import hardware
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.errors import ConfigError
from diffuse.layers.attention import BasicTransformerBlock
from diffuse.layers.resnet import ResnetBlock2D
from diffuse.run import run
from diffuse.schema import Cleanup, Compile, MemoryProfileConfig

COMPILED = Hardware("cpu", compile=Compile.regional, threads=1)
PROFILE = MemoryProfileConfig("balanced", ["*"], cleanup=Cleanup.phases)


class Blocks(nn.Module):
    """Two of each kind of block that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(8, 8, groups=2, eps=1e-5) for _ in range(2))
        self.attentions = nn.ModuleList(BasicTransformerBlock(8, 2, 4, upcast=False) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = resnet(x)
            tokens = attention(x.flatten(2).transpose(1, 2), text)
            x = x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        return x


def blocks(device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return Blocks().to(device, dtype).eval().requires_grad_(False)


def inputs(side: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, side, side, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)  # as the models have it
    return x, torch.randn(2, 5, 4, generator=generator)


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    hardware.apply(Hardware("cpu"))


def compiled() -> int:
    """How many blocks were compiled since the test began, each for a shape."""
    return int(counters["stats"]["unique_graphs"])


@torch.inference_mode()
def call(memory: Memory, side: int = 6) -> Tensor:
    with memory.use("unet") as unet:
        result: Tensor = unet(*inputs(side))
    return result


def test_a_block_is_compiled_once_for_every_shape() -> None:
    hardware.apply(COMPILED)
    memory = Memory(PROFILE, COMPILED)
    memory.add("unet", blocks)
    memory.add("vae", blocks)
    eager = blocks(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(call(memory), eager(*inputs()), rtol=1e-5, atol=1e-5)
    assert compiled() == 2  # and not four: a kind of block shares its code
    call(memory)
    with memory.use("vae"):  # the U-Net leaves, by the hook that brings it back
        pass
    call(memory)
    memory.release_all()  # it is loaded again
    call(memory)
    assert compiled() == 2
    torch.testing.assert_close(call(memory, 8), eager(*inputs(8)), rtol=1e-5, atol=1e-5)
    call(memory, 8)
    call(memory)
    assert compiled() == 4


def test_a_picture_is_the_same_within_two_levels(tmp_path: Path) -> None:
    variant = oracle.Variant(channels=(16,), heads=2, cross=(True,), vae_channels=(8,))
    folder = oracle.build(tmp_path, variant)
    made = {}
    for compile in ("none", "regional"):
        words = ("model=sd21", f"model.source={folder}", "hardware=cpu", "hardware.threads=1", "tracking=none")
        words += ("prompt=a cat", "seed=1", "num_inference_steps=2", "width=16", "height=16")
        cfg = configuration.compose([*words, f"hardware.compile={compile}"])
        made[compile] = run.generate(cfg, validation.drafts(cfg))[0]
        assert made[compile].record["hardware"]["compile"] == compile
        assert made[compile].record["config"]["hardware"]["compile"] == compile
    assert 0 < compiled() < 8
    plain, other = (one.frames.astype(int) for one in made.values())
    assert plain.std() > 5 and np.abs(plain - other).max() <= 2
    before = compiled()
    run.generate(cfg, validation.drafts(cfg))
    assert compiled() == before


def test_compiling_is_part_of_what_a_pipeline_is_kept_by() -> None:
    assert Hardware("cpu").key != replace(Hardware("cpu"), compile=Compile.regional).key


def test_an_unknown_way_to_compile_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"none.*regional"):
        configuration.compose(["hardware.compile=fast"])


def compiling_with(compiler: Path, folder: Path) -> command.Done:
    """What the command says where that is the machine's C++ compiler. A process of its own: torch looks once."""
    env = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    words = ("hardware=cpu", "hardware.compile=regional", "tracking=none", "output.dir=out")
    done = command.finished(command.start(*words, cwd=folder, env=env))
    assert done.err.count("\n") == 1 and "hardware.compile=none" in done.err
    assert not done.out and not list(folder.glob("out/*"))
    return done


def test_without_a_compiler_it_is_said(tmp_path: Path) -> None:
    done = compiling_with(tmp_path / "nothing", tmp_path)
    assert done.status == 2 and "needs a C++ compiler" in done.err


def test_what_the_compiler_cannot_do_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ $# = 1 ] && exec g++ "$@"\necho no room >&2\nexit 1\n')  # one: --version
    broken.chmod(0o755)
    done = compiling_with(broken, tmp_path)
    assert done.status == 1 and "the unet could not be compiled" in done.err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_card_compiled_blocks_agree_with_plain_ones() -> None:
    hw = hardware.detect(configuration.compose(["hardware=cuda", "hardware.compile=regional"]).hardware)
    hardware.apply(hw)
    memory = Memory(replace(PROFILE, half=False), hw)
    memory.add("unet", blocks)
    memory.add("vae", blocks)
    device = torch.device("cuda", 0)
    eager = blocks(device, torch.float32)(*(x.to(device) for x in inputs()))
    for _ in range(2):
        with memory.use("unet") as unet, torch.inference_mode():
            torch.testing.assert_close(unet(*(x.to(device) for x in inputs())), eager, rtol=1e-3, atol=1e-3)
        with memory.use("vae"):
            pass
    assert compiled() == 2
