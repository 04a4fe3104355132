"""`diffuse compare` of what a tracking store knows."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from command import Done, diffuse, smoke

from diffuse.request import TrackingConfig
from diffuse.tracking.query import StoreReader


@pytest.fixture(scope="module")
def tracked(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two runs in the experiment `paints`."""
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copy(empty, folder / "mlflow.db")
    for steps in (1, 2):
        smoke("seed=5", f"num_inference_steps={steps}", "tracking=mlflow", *STORE, f"output.dir=p/{steps}", cwd=folder)
    return folder


STORE = ("tracking.uri=sqlite:///mlflow.db", "tracking.experiment=paints")


def compared(*names: str, cwd: Path) -> Done:
    return diffuse("compare", *names, STORE[0], cwd=cwd)


def rows(done: Done, cwd: Path) -> list[dict[str, str]]:
    assert done.status == 0, done.err
    with open(cwd / done.paths[1], newline="") as file:
        return list(csv.DictReader(file))


def test_an_experiment_is_compared(tracked: Path) -> None:
    done = compared("paints", "--out", "exp", cwd=tracked)
    found = rows(done, tracked)
    assert [row["num_inference_steps"] for row in found] == ["1", "2"]
    assert all(len(row["run_id"]) == 32 and float(row["seconds"]) > 0 for row in found)
    assert 0 < float(found[0]["ssim"]) < 1
    assert all((tracked / "exp" / row["file"]).is_file() for row in found)  # fetched, so that the links hold
    assert "outputs" not in [path.name for path in tracked.iterdir()]


def test_runs_and_folders_are_mixed(tracked: Path, tmp_path: Path) -> None:
    reader = StoreReader(TrackingConfig(name="mlflow", uri=f"sqlite:///{tracked / 'mlflow.db'}"))
    first, second = reader.experiment("paints")
    done = compared(first.run_id, str(tracked / "p" / "2"), "--out", str(tmp_path / "mixed"), cwd=tracked)
    found = rows(done, tracked)
    assert [bool(row["run_id"]) for row in found] == [True, False]
    done = compared(
        first.run_id, second.run_id, "--reference", first.run_id, "--out", str(tmp_path / "two"), cwd=tracked
    )
    assert [bool(row["ssim"]) for row in rows(done, tracked)] == [False, True]


def test_what_no_store_knows_is_refused(tracked: Path, tmp_path: Path) -> None:
    for name in ("0123456789abcdef0123456789abcdef", "no experiment", "deadbeef"):
        done = compared(name, cwd=tracked)
        assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
        assert f"{name}: is no file or folder, and no run, sweep or experiment" in done.err
    assert not (tracked / "outputs").exists()
    done = compared("deadbeef", cwd=tmp_path)
    assert (done.status, list(tmp_path.iterdir())) == (2, [])
    assert "nothing is recorded there yet" in done.err
    done = diffuse("compare", "deadbeef", "tracking=none", cwd=tmp_path)
    assert done.status == 2 and "tracking=none" in done.err
