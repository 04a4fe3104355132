"""`diffuse compare` of what a tracking store knows."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from command import SMOKE, Done, diffuse, smoke

from diffuse.errors import NotInStore
from diffuse.schema import TrackingConfig
from diffuse.tracking.query import FoundRun, StoreReader
from diffuse.tracking.tags import SWEEP_TAG


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


def test_a_beginning_of_several_sweeps_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [FoundRun(str(n), "x", "FINISHED", {}, {}, {SWEEP_TAG: f"abcdef{n}"}) for n in range(2)]
    monkeypatch.setattr(StoreReader, "__init__", lambda *_: None)
    monkeypatch.setattr(StoreReader, "_search", lambda *_: found)
    monkeypatch.setattr(StoreReader, "run", missing)
    monkeypatch.setattr(StoreReader, "experiment", missing)
    done = diffuse("compare", "abcdef", cwd=tmp_path)
    assert (done.status, done.err) == (2, "diffuse: abcdef begins the names of 2 sweeps; write more of it\n")


def missing(reader: StoreReader, name: str) -> None:
    raise NotInStore(f"there is no {name}")


SWEEP = ("-m", *SMOKE[:2], *SMOKE[4:], "seed=1,2", "num_inference_steps=1,2")


@pytest.fixture
def swept(empty: Path, tmp_path: Path) -> Path:
    """A folder with a store and a sweep in `out`, tracked there."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    done = diffuse(*SWEEP, "tracking=mlflow", *STORE, "output.dir=out", cwd=tmp_path)
    assert done.status == 0, done.err
    return tmp_path


def summary(folder: Path) -> tuple[StoreReader, FoundRun]:
    reader = StoreReader(TrackingConfig(name="mlflow", uri=f"sqlite:///{folder / 'mlflow.db'}"))
    identity = json.loads((folder / "out" / "sweep.json").read_text())["identity"]
    return reader, reader.run(f"{identity[:12]}-summary")


def logged(folder: Path, name: str, fetched: Path) -> dict[str, bytes]:
    reader, run = summary(folder)
    return {path.name: path.read_bytes() for path in reader.fetch(run, name, fetched)}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_report_by_hand_takes_the_place_of_the_sweeps(swept: Path) -> None:
    _, before = summary(swept)
    made = logged(swept, "report", swept / "1")
    assert made == on_disk(swept / "out" / "report") and "sheet.png" in made
    (swept / "out" / "report" / "notes.txt").write_text("a user's own, which goes nowhere")
    done = compared("out", "--x", "seed", "--z", "num_inference_steps", cwd=swept)
    assert (done.status, done.err) == (0, "")
    (swept / "out" / "report" / "notes.txt").unlink()
    again = logged(swept, "report", swept / "2")
    assert again == on_disk(swept / "out" / "report") and "sheet.png" not in again
    assert [name for name in again if name.startswith("sheet")] and again["report.html"] != made["report.html"]
    assert summary(swept)[1] == before  # it is the same run, and has not begun again


def test_a_report_of_a_part_lies_beside_the_sweeps(swept: Path) -> None:
    whole = logged(swept, "report", swept / "1")
    reader, run = summary(swept)
    jobs = reader.sweep(run.tags["diffuse.sweep"])
    done = compared(jobs[0].run_id, jobs[1].run_id, "--out", "two", cwd=swept)
    assert (done.status, done.err) == (0, "")
    assert logged(swept, "report", swept / "2") == whole
    two = on_disk(swept / "two")
    assert logged(swept, "two", swept / "3") == two and len(two["table.csv"].splitlines()) == 3
    picture = next((swept / "out").glob("*steps_1*/*.png"))
    assert compared(picture, jobs[0].run_id, "--out", "mixed", cwd=swept).status == 0
    assert logged(swept, "mixed", swept / "4") == on_disk(swept / "mixed")


def test_what_is_of_no_one_sweep_goes_to_no_run(swept: Path, tracked: Path) -> None:
    shutil.copytree(tracked / "p", swept / "p")
    assert compared("out", "p", "--out", "both", cwd=swept).status == 0
    done = diffuse(*SWEEP, "guidance_scale=2", "tracking=none", "output.dir=other", cwd=swept)
    assert done.status == 0, done.err
    assert compared("other", "--out", "untracked", cwd=swept).status == 0
    assert compared("out", "tracking=none", "--out", "none", cwd=swept).status == 0
    reader, run = summary(swept)
    assert not any(reader.fetch(run, name, swept / "f") for name in ("both", "untracked", "none"))
    assert len(reader.experiment("paints")) == 4


def test_a_store_that_does_not_take_a_report_costs_nothing(swept: Path) -> None:
    """It is away; it is another, that knows no such run; or the address is none."""
    away = diffuse("compare", "out", "tracking.uri=http://127.0.0.1:9", "--out", "away", cwd=swept)
    assert away.status == 0 and len(away.paths) > 3
    assert away.err.splitlines() == [
        "warning: the report is in away, and not in the run of its sweep: tracking.uri=http://127.0.0.1:9: "
        "the server does not answer"
    ]
    done = diffuse("compare", "out", "--out", "elsewhere", cwd=swept)
    assert (done.status, done.err, (swept / "outputs").exists()) == (0, "", False)
    done = diffuse("compare", "out", "tracking.uri=nowhere", "--out", "nowhere", cwd=swept)
    assert done.status == 0 and "can hold no runs" in done.err
    done = diffuse("compare", "out", "tracking.url=x", "--out", "typo", cwd=swept)
    assert (done.status, done.out, (swept / "typo").exists()) == (2, "", False)
