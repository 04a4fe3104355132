"""Runs on their way to a real MLflow server, with SQLite or PostgreSQL behind it, that is killed and started again."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from command import SMOKE, diffuse, until
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from processes import LIMIT
from tracked_runs import spooled
from tracking_servers import MlflowServer, postgres, postgres_programs

from diffuse import tracking
from diffuse.errors import RunError
from diffuse.schema import TrackingConfig
from diffuse.tracking import mlflow_store, sync
from diffuse.tracking.query import StoreReader, add_files
from diffuse.tracking.store import Store

PROMPT = "a cactus, “pink” background: (x:1.2) = {100%} 🌵"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, empty: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "sqlite":
        shutil.copy(empty, folder / "mlflow.db")
        yield from serving(MlflowServer(f"sqlite:///{folder}/mlflow.db", folder))
        return
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres(programs) as address:
        yield from serving(MlflowServer(address, folder))


def serving(server: MlflowServer) -> Iterator[MlflowServer]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


def settings(server: MlflowServer, folder: Path) -> TrackingConfig:
    return TrackingConfig(name="mlflow", uri=server.address, journal=str(folder / "pending"), experiment=folder.name)


def runs(server: MlflowServer, experiment: str) -> list[Run]:
    client = MlflowClient(server.address)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def test_a_run(server: MlflowServer, tmp_path: Path) -> None:
    done = diffuse(
        *SMOKE, f"prompt={PROMPT}", "output.name=cactus", f"output.dir={tmp_path}/out", "num_images=2",
        f"tracking.uri={server.address}", f"tracking.experiment={tmp_path.name}", cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0 and "warning" not in done.err, done.err
    (run,) = runs(server, tmp_path.name)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert run.data.params["prompt"] == PROMPT
    (weights,) = run.inputs.dataset_inputs
    assert run.data.tags["diffuse.weights"].partition("@")[2].startswith(weights.dataset.digest)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]  # nothing is left in the journal, nor the journal

    reader = StoreReader(settings(server, tmp_path))
    for name in (run.info.run_id, run.data.tags["diffuse.run"]):
        found = reader.run(name)
        assert (found.run_id, found.name) == (run.info.run_id, "cactus")
    assert [found.run_id for found in reader.experiment(tmp_path.name)] == [run.info.run_id]
    assert reader.record(found, tmp_path / "fetched")["request"]["prompt"] == PROMPT
    fetched = reader.media(found, tmp_path / "fetched")
    assert [path.read_bytes() for path in fetched] == [path.read_bytes() for path in sorted(done.paths)]

    for letters in ("ab", "bc"):
        files = [tmp_path / letter for letter in letters]
        for file in files:
            file.write_text(letters)
        add_files(settings(server, tmp_path), found.tags["diffuse.run"], "report", files)
    reports = reader.fetch(found, "report", tmp_path / "fetched")
    assert [(path.name, path.read_text()) for path in reports] == [("b", "bc"), ("c", "bc")]


def record_run(tracker: tracking.Tracker, name: str, picture: Path) -> tracking.TrackedRun:
    run = tracker.start(name, {"name": name}, {}, {"note.txt": name}, weights={"source": "w", "sha256": "0" * 64})
    run.log_media(picture)
    run.log_steps([0.5, 0.25])
    run.log_metrics({"value": 1.0})
    return run


def test_killed_and_started_again_nothing_is_lost_or_doubled(
    server: MlflowServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    picture = tmp_path / "picture.png"
    Image.radial_gradient("L").resize((64, 64)).save(picture)
    cfg = settings(server, tmp_path)
    tracker = tracking.open_tracker(cfg)
    names = ["across", "first"]
    across = record_run(tracker, "across", picture)
    first = record_run(tracker, "first", picture)
    first.finish()
    until(lambda: first.run_id is not None and across.run_id is not None)
    assert {run.info.run_name: run.info.status for run in runs(server, tmp_path.name)}["across"] == "RUNNING"
    for number in range(8):  # some of these are on their way when it dies
        record_run(tracker, f"burst {number}", picture).finish()
        names.append(f"burst {number}")
    until(lambda: len(runs(server, tmp_path.name)) > 2)
    server.kill()
    across.set_tags({"late": "yes"})
    across.finish()
    (warning,) = tracker.close()
    assert "does not answer" in warning
    assert f"diffuse sync tracking.journal={tmp_path}/pending" in warning

    if request.node.callspec.params["server"] == "sqlite":
        assert_sync_reports_what_is_left(cfg)
        server.start()
        said: list[str] = []
        sync.sync(cfg, said.append)
        assert len(said) == 1 and f"delivered to {server.address}" in said[0]
        sync.sync(cfg, said.append)
        assert "nothing waits" in said[1]
    else:  # the next run delivers what others left; it begins while nobody answers
        later = tracking.open_tracker(cfg)
        record_run(later, "later", picture).finish()
        names.append("later")
        time.sleep(0.5)
        server.start()
        if later.close():  # a busy machine's server may take longer to answer than a run waits for it at its end
            assert tracking.open_tracker(cfg).close() == []

    made = runs(server, tmp_path.name)
    assert Counter(run.info.run_name for run in made) == Counter(names)
    client = MlflowClient(server.address)
    for run in made:
        assert run.info.status == "FINISHED"
        steps = client.get_metric_history(run.info.run_id, "time/step_s")
        assert [(row.step, row.value) for row in steps] == [(0, 0.5), (1, 0.25)]
        assert len(client.get_metric_history(run.info.run_id, "value")) == 1
        assert [entry.path for entry in client.list_artifacts(run.info.run_id, "media")] == ["media/picture.png"]
        assert len(client.list_artifacts(run.info.run_id, "images")) == 2  # whole and small
        assert len(run.inputs.dataset_inputs) == 1
    assert client.get_run(str(across.run_id)).data.tags["late"] == "yes"
    assert not (tmp_path / "pending").exists()


def assert_sync_reports_what_is_left(cfg: TrackingConfig) -> None:
    done = diffuse("sync", f"tracking.uri={cfg.uri}", f"tracking.journal={cfg.journal}", cwd=Path("/"))
    assert (done.status, done.out) == (1, "")
    warning, left = done.err.splitlines()
    assert "does not answer" in warning
    assert "could not be delivered" in left and str(cfg.journal) in left


def test_the_same_weights_from_many_at_the_same_moment(server: MlflowServer, tmp_path: Path) -> None:
    """Whoever comes second finds them recorded, though they were not when it looked."""
    store = Store.from_config(settings(server, tmp_path))
    connection = mlflow_store.Connection(store)
    experiment = connection.experiment(store)
    stored = [connection.create(experiment, f"run {number}", 1, {}) for number in range(8)]
    together = threading.Barrier(len(stored))

    def log(run: mlflow_store.StoredRun) -> None:
        for digest in range(3):
            together.wait(LIMIT)
            connection.log_weights(run, {"source": "w", "sha256": f"{digest}" * 64})

    with ThreadPoolExecutor(len(stored)) as threads:
        list(threads.map(log, stored))
    for run in runs(server, tmp_path.name):
        assert len(run.inputs.dataset_inputs) == 3


def test_runs_whose_experiment_takes_none_hold_up_no_others(
    server: MlflowServer, picture: Path, tmp_path: Path
) -> None:
    cfg = settings(server, tmp_path)
    client = MlflowClient(server.address)
    client.delete_experiment(client.create_experiment(f"{tmp_path.name} gone"))
    for experiment in (f"{tmp_path.name} gone", "", "x" * 501, None):
        waits = spooled(cfg, picture)
        if experiment is not None:
            values = json.loads((waits / "store.json").read_text())
            (waits / "store.json").write_text(json.dumps({**values, "experiment": experiment}))
    said: list[str] = []
    with pytest.raises(RunError, match="3 runs could not be delivered"):
        sync.sync(replace(cfg, experiment=None), said.append)
    assert len([line for line in said if "set tracking.experiment=NAME" in line]) == 3, said
    assert len(runs(server, tmp_path.name)) == 1
    sync.sync(cfg, said.append)  # which has a name
    assert len(runs(server, tmp_path.name)) == 4 and not (tmp_path / "pending").exists()
