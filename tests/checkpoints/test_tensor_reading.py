"""Reading tensors: whole through the window, and never two copies in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import WHOLE, checkpoint
from torch import nn

from diffuse.checkpoints.weights import load_weights


def test_a_tensor_larger_than_the_window_is_read_whole(tmp_path: Path) -> None:
    source = {"weight": torch.randn(2500, 3400, generator=torch.Generator().manual_seed(1)).half()}
    found = checkpoint(tmp_path, {WHOLE: source})
    module = load_weights(lambda: nn.Linear(3400, 2500, bias=False), found, "unet", device="cpu", dtype=torch.float32)
    assert torch.equal(module.weight, source["weight"].float())  # type: ignore[arg-type]


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.weights import load_weights
torch.set_num_threads(1)
def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
def build():
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(6)))
found = CheckpointFolder.open(Path(sys.argv[1]))
load_weights(lambda: nn.Linear(8, 8, bias=False), found, "small", device="cpu", dtype=torch.float32)
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
module = load_weights(build, found, "unet", device="cpu", dtype=getattr(torch, sys.argv[2]))
for parameter in module.parameters():
    parameter.sum()
size = sum(p.numel() * p.element_size() for p in module.parameters())
print((resident("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16")]
)
def test_memory_never_holds_a_second_copy(tmp_path: Path, stored: str, wanted: str) -> None:
    source = {f"{i}.weight": torch.ones(2048, 2048, dtype=getattr(torch, stored)) for i in range(6)}
    checkpoint(tmp_path, {WHOLE: {"weight": torch.ones(8, 8).half()}}, component="small")
    checkpoint(tmp_path, {WHOLE: source})
    ratio = float(subprocess.check_output([sys.executable, "-c", MEASURE, str(tmp_path), wanted], text=True))
    # The buffer and torch's own code that is first run here count too, which is little beside a real model.
    assert ratio < 1.1 + 16e6 / (6 * 2048 * 2048 * getattr(torch, wanted).itemsize)
