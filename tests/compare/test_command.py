"""The command of a cell makes the same picture."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import numpy as np
from command import smoke
from compared import PROMPT, record
from PIL import Image

from diffuse.compare.cells import build_cell, cells_in_folder
from diffuse.compare.command import cell_command, command_obstacle


def test_the_command_is_what_a_shell_gives_back(tmp_path: Path) -> None:
    cell = build_cell(tmp_path / "x.png", record(5, 4, **{"scheduler.eta": 0.5}))
    words = shlex.split(cell_command(cell))
    assert words[0] == "diffuse"
    assert f"prompt={PROMPT}" in words and "scheduler.eta=0.5" in words
    assert not [word for word in words if word.startswith(("output", "tracking"))]
    echoed = subprocess.run(
        ["sh", "-c", cell_command(cell).replace("diffuse", "printf '%s\\n'", 1)], capture_output=True
    )
    assert f"prompt={PROMPT}".encode() in echoed.stdout.split(b"\n")


def test_the_command_makes_the_same_picture(tmp_path: Path) -> None:
    odd = 'a cactus, "quoted" it\'s $HOME `x` (1+1)=2\nnext line'
    made = smoke(f"prompt={odd}", "seed=3", "num_images=2", "output.dir=a", cwd=tmp_path)
    second = cells_in_folder(tmp_path / "a").cells[1]
    words = shlex.split(cell_command(second))[1:]
    again = smoke(*words, "hardware.deterministic=strict", "output.dir=b", cwd=tmp_path)
    assert len(made.paths) == 2 and len(again.paths) == 1
    pictures = [np.asarray(Image.open(tmp_path / path), np.int16) for path in (made.paths[1], again.paths[0])]
    assert abs(pictures[0] - pictures[1]).max() <= 2


def test_a_command_that_does_not_make_the_same_picture_says_so(tmp_path: Path) -> None:
    about = record(1, 4)
    assert command_obstacle(build_cell(tmp_path / "x.png", about)) == ""
    about["inputs"] = {"latents": {"sha256": "0"}}
    assert "noise" in command_obstacle(build_cell(tmp_path / "x.png", about))


def test_a_prompt_of_a_file_and_a_drawn_seed_are_written_out(tmp_path: Path) -> None:
    about = record(5, 4)
    about["overrides"] = ["prompt_file=prompts.txt", "num_images=4"]
    assert shlex.split(cell_command(build_cell(tmp_path / "x.png", about))) == [
        "diffuse",
        f"prompt={PROMPT}",
        "seed=5",
    ]
