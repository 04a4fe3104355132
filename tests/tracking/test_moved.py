"""Outputs folders that were moved: old runs have their files, and those that wait are delivered."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tracked_runs import artifacts, record_run, runs, settings, spooled, sync

from diffuse import tracking
from diffuse.tracking import moved
from diffuse.tracking.moved import moved_file, repoint_artifacts, repoint_store
from diffuse.tracking.query import StoreReader

PICTURE = next((Path(moved.__file__).parents[1] / "smoke" / "reference").glob("*.png"))


@pytest.fixture(scope="module")
def outputs(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an outputs folder: a store with one run, a second that waits, and the picture of both."""
    folder = tmp_path_factory.mktemp("moved") / "a project" / "outputs"
    folder.mkdir(parents=True)
    shutil.copy(empty, folder / "mlflow.db")
    shutil.copy(PICTURE, folder / "picture.png")
    tracker = tracking.open_tracker(settings(folder / "mlflow.db"))
    record_run(tracker, folder / "picture.png").finish()
    assert tracker.close() == []
    spooled(settings(folder / "mlflow.db"), folder / "picture.png", 1)
    shutil.copytree(folder.parent, folder.parents[1] / "saved")
    return folder


@pytest.fixture
def project(outputs: Path) -> Path:
    """The project at its place, for a test that moves it away."""
    shutil.rmtree(outputs.parent, ignore_errors=True)
    shutil.copytree(outputs.parents[1] / "saved", outputs.parent)
    return outputs.parent


def places(file: Path) -> set[str]:
    """Where the experiment and its runs have their files."""
    with closing(sqlite3.connect(file)) as store:
        found = {row[0] for row in store.execute("SELECT artifact_location FROM experiments WHERE name = 'diffuse'")}
        uris = [row[0] for row in store.execute("SELECT artifact_uri FROM runs")]
    return found | {uri.rsplit("/", 2)[0] for uri in uris}


@pytest.mark.parametrize("name", ["project 2/outputs", "a project/renamed", "é b/pictures"])
def test_it_goes_on_at_its_new_place(name: str, project: Path, tmp_path: Path) -> None:
    target = project.parent / name if name.startswith("a project") else tmp_path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(project / "outputs", target)
    store = target / "mlflow.db"
    assert StoreReader(settings(store)).experiment("diffuse")[0].name == "run"
    assert places(store) == {(target / "mlartifacts").as_uri()}
    (old,) = runs(store)
    fetched = artifacts(store, old, tmp_path / "fetched")
    assert (fetched / "media" / "picture.png").read_bytes() == (target / "picture.png").read_bytes()
    assert sync(settings(store)) == [f"1 run delivered to sqlite:///{store}"]
    tracker = tracking.open_tracker(settings(store))
    record_run(tracker, target / "picture.png").finish()
    assert tracker.close() == []
    assert len(runs(store)) == 3
    for run in runs(store):
        assert len(list((target / "mlartifacts" / run.info.run_id / "artifacts" / "media").iterdir())) == 1
    assert not (target / "mlflow-pending").exists() and not (project / "outputs").exists()


def test_a_copy_leaves_the_original_alone(project: Path, tmp_path: Path) -> None:
    before = places(project / "outputs" / "mlflow.db")
    copy = shutil.copytree(project / "outputs", tmp_path / "copy")
    repoint_artifacts(copy / "mlflow.db")
    assert places(copy / "mlflow.db") == places(project / "outputs" / "mlflow.db") == before


def test_places_that_were_chosen_are_kept(project: Path, tmp_path: Path) -> None:
    file = Path(shutil.move(project / "outputs", tmp_path / "moved")) / "mlflow.db"
    chosen = ["s3://bucket/mlartifacts", "file:///no/such/disk/pictures", "mlflow-artifacts:/1"]
    for place in [*chosen, "file:///no/such/mlartifacts"]:  # the last is a disk that is not mounted
        with closing(sqlite3.connect(file)) as store, store:
            store.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'diffuse'", (place,))
            store.execute("UPDATE runs SET artifact_uri = ? || '/1/artifacts', run_uuid = '1'", (place,))
        repoint_artifacts(file)
        assert places(file) == {place}


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_what_is_no_store_is_left_to_mlflow(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "mlartifacts").mkdir()
    file = tmp_path / "mlflow.db"
    if content is not None:
        file.write_bytes(content)
    repoint_artifacts(file)
    assert (file.read_bytes() if file.exists() else None) == content


def test_paths_and_stores_that_did_not_move_stay(tmp_path: Path) -> None:
    here = tmp_path / "outputs"
    (here / "mlflow-pending").mkdir(parents=True)
    (here / "mlflow.db").touch()
    for file in (str(here / "mlflow.db"), str(tmp_path / "other.db"), None):
        values = {"file": file, "uri": f"sqlite:///{file}", "artifacts": None}
        assert repoint_store(values, here / "mlflow-pending") == values
        assert moved_file(Path("/no/such/a.png"), values, here / "mlflow-pending") == Path("/no/such/a.png")
    gone = {
        "file": "/no/such/outputs/mlflow.db",
        "uri": "sqlite:////no/such/outputs/mlflow.db",
        "artifacts": "s3://a/b",
    }
    assert repoint_store(gone, tmp_path / "own-journal") == gone  # chosen by the user, it says nothing of the store
    found = repoint_store(gone, here / "mlflow-pending")
    assert found == {**gone, "file": str(here / "mlflow.db"), "uri": f"sqlite:///{here}/mlflow.db"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").touch()  # beside the outputs folder, moved with the project
    assert moved_file(Path("/no/such/out/a.png"), gone, here / "mlflow-pending") == tmp_path / "out" / "a.png"
    assert moved_file(Path("/else/out/a.png"), gone, here / "mlflow-pending") == Path("/else/out/a.png")
