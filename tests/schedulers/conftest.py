"""Checkpoints that several samplers make pictures with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import sampler_parity as parity


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a checkpoint with the options of `parity.small`, once: nobody writes into it."""
    made: dict[str, Path] = {}

    def build(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = oracle.build(tmp_path_factory.mktemp("checkpoint"), parity.small(**options))
        return made[key]

    return build
