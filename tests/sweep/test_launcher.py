"""The packages that only some launchers and sweepers need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command import diffuse


@pytest.mark.parametrize(
    ("overrides", "package", "extra"),
    [
        (["hydra/launcher=ray"], "ray", "ray"),
        (["hydra/launcher=joblib"], "joblib", "joblib"),
        (["hydra/launcher=submitit_slurm"], "submitit", "slurm"),
        (["experiment=tune_guidance"], "hydra_plugins.hydra_optuna_sweeper", "optuna"),
    ],
)
def test_what_is_not_installed_is_named(
    overrides: list[str], package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = diffuse("-m", *overrides, "seed=1,2", "tracking=none", cwd=tmp_path)
    assert done.status == 2
    assert done.err.count("\n") == 1 and f"pip install 'diffuse[{extra}]'" in done.err
    assert not list(tmp_path.iterdir())
