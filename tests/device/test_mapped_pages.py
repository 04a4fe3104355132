"""Weights that stream from the disk: pages of their file that are in memory, as Linux counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_files import WHOLE, checkpoint
from torch import Tensor, nn

from diffuse.checkpoints.weights import load_weights
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.layers.packed import Linear
from diffuse.schema import Cleanup, MemoryProfileConfig, ReleaseTo

WIDTH, LAYERS = 1024, 16
LAYER_BYTES = 4 * WIDTH * WIDTH
EDGES = 256 << 10  # bytes of neighbours' pages, which Linux maps with those that were asked for

SMAPS = Path("/proc/self/smaps")
pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="pages are counted in Linux's /proc")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


def bytes_in_memory(file: Path) -> int:
    """Of the pages of a file that this process has mapped."""
    found, inside = 0, False
    for line in SMAPS.read_text(errors="replace").splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


@pytest.mark.parametrize("release_to", ReleaseTo)
def test_no_more_than_a_layer_of_the_file_is_in_memory(release_to: ReleaseTo, tmp_path: Path) -> None:
    """64 MB of weights, of which 4 MB are there at any time; without it all of them stay."""
    source = {f"{i}.linear.weight": torch.randn(WIDTH, WIDTH) / 32 for i in range(LAYERS)}
    found = checkpoint(tmp_path, {WHOLE: source})
    (file,) = tmp_path.rglob("*.safetensors")

    def build() -> nn.Module:
        return nn.Sequential(*(Block() for _ in range(LAYERS)))

    def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
        return load_weights(build, found, "unet", device=device, dtype=dtype)

    profile = MemoryProfileConfig("disk", ["*"], streamed=["*"], cleanup=Cleanup.phases, release_to=release_to)
    memory = Memory(profile, Hardware("cpu"))
    memory.add("unet", load, blocks=(Block,))
    x = torch.randn(2, WIDTH)
    expected = x
    for weight in source.values():
        expected = expected @ weight.T
    during: list[int] = []
    with memory.use("unet") as module:
        for block in module:
            block.register_forward_hook(lambda *_: during.append(bytes_in_memory(file)))
        for _ in range(2):
            torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-3)
    if release_to is ReleaseTo.disk:
        assert max(during) <= EDGES
    else:
        assert max(during) >= LAYERS * LAYER_BYTES
