"""Sweeps as their users run them, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from command import Done, diffuse
from PIL import Image

QUICK = ("hardware=cpu", "hardware.threads=1", "tracking=none", "report.make=false", "output.dir=out")


def swept(*overrides: Any, cwd: Path, status: int = 0) -> Done:
    done = diffuse("-m", *QUICK, *overrides, cwd=cwd)
    assert done.status == status, done.err
    return done


def pixels(done: Done, cwd: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(cwd / path)) for path in done.paths]
