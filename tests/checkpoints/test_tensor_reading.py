"""Reading tensors: whole through the window, and never two copies in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import WHOLE, checkpoint
from torch import nn

import diffuse
from diffuse.checkpoints.tensor_reading import check_mapped_files
from diffuse.checkpoints.weights import load_weights
from diffuse.config.groups import TINY
from diffuse.errors import CheckpointError


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


def large(folder: Path) -> tuple[Path, Any]:
    """A checkpoint with a tensor that is mapped and one that is copied; and its file."""
    source = {"0.weight": torch.ones(1024, 1024), "1.weight": torch.ones(8, 8)}
    return folder / "unet" / WHOLE, checkpoint(folder, {WHOLE: source})


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(8, 8, bias=False))


@pytest.mark.parametrize("left", [0, 1, 8, 4096, 1 << 20, -4096, -1])
def test_a_file_that_is_cut_between_its_header_and_its_tensors(left: int, tmp_path: Path) -> None:
    path, found = large(tmp_path)
    (file,) = found.tensor_files("unet")
    os.truncate(path, left if left >= 0 else path.stat().st_size + left)
    with pytest.raises(OSError, match="it was cut short meanwhile"):
        file.read(dict.fromkeys(file.tensors, torch.float32), torch.device("cpu"))
    with pytest.raises(OSError, match="it was cut short meanwhile"):
        file.read(dict.fromkeys(file.tensors, torch.bfloat16), torch.device("cpu"))


@pytest.mark.parametrize("left", [0, 4096, 1 << 20])
def test_a_file_that_is_cut_while_it_is_mapped(left: int, tmp_path: Path) -> None:
    path, found = large(tmp_path)
    module = load_weights(build, found, "unet", device="cpu", dtype=torch.float32)
    check_mapped_files()
    os.truncate(path, left)
    with pytest.raises(CheckpointError, match="was cut short while it was in use; copy or download it again"):
        check_mapped_files()
    with pytest.raises(CheckpointError, match="was cut short"):
        check_mapped_files({tmp_path / "other", found.path("model_index.json").parent})
    check_mapped_files({tmp_path / "other", path.parent / "none"})  # another model goes on
    del module  # and with it the tensors
    check_mapped_files()


def test_a_file_that_is_replaced_or_grows_harms_nothing(tmp_path: Path) -> None:
    path, found = large(tmp_path)
    module = load_weights(build, found, "unet", device="cpu", dtype=torch.float32)
    (tmp_path / "other").write_bytes(b"another")
    os.replace(tmp_path / "other", path)
    check_mapped_files()
    path.unlink()
    check_mapped_files()
    assert all(bool((parameter == 1).all()) for parameter in module.parameters())


def test_a_run_looks_at_its_files_between_the_steps(tmp_path: Path) -> None:
    model = shutil.copytree(TINY, tmp_path / "model")
    path, found = large(model / "large")  # a file of the model's, of tensors that are not small
    module = load_weights(build, found, "unet", device="cpu", dtype=torch.float32)
    steps: list[int] = []

    def cut(step: Any) -> None:
        steps.append(step.index)
        os.truncate(path, 4096)

    for already_made in (1, 0):  # at the second step; and of another run before its first
        with pytest.raises(CheckpointError, match="was cut short while it was in use") as caught:
            diffuse.txt2img("a", model=model, seed=1, num_inference_steps=4, hardware="cpu", on_step=cut)
        assert caught.value.exit_status == 2 and len(steps) == already_made
        steps.clear()
    del module
