"""One run that cannot be delivered never holds up the others, and `diffuse sync` says what to do."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command import diffuse
from tracked_runs import client, record_run, runs, settings, spooled, sync

from diffuse import tracking
from diffuse.errors import RunError
from diffuse.schema import TrackingConfig
from diffuse.tracking import journal
from diffuse.tracking.sync import sync as deliver


def said(cfg: TrackingConfig) -> list[str]:
    """What `sync` says where something waits on."""
    lines: list[str] = []
    with pytest.raises(RunError, match="could not be delivered") as error:
        deliver(cfg, lines.append)
    return [*lines, str(error.value)]


def spool_for(store: Path, picture: Path, experiment: Any, count: int = 1) -> Path:
    """Runs that wait for an experiment, of whatever name."""
    folder = spooled(settings(store, experiment="x"), picture, count)
    values = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**values, "experiment": experiment}))
    return folder


def deleted(store: Path, name: str) -> None:
    made = client(store).create_experiment(name)
    client(store).delete_experiment(made)


WRONG_EXPERIMENTS = {
    "deleted": ("gone", "the experiment gone is deleted: restore it, or set tracking.experiment=NAME"),
    "empty": ("", "an experiment without a name"),
    "too long": ("x" * 501, "tracking.experiment=NAME"),
}


@pytest.mark.parametrize("case", WRONG_EXPERIMENTS)
def test_an_experiment_that_takes_no_runs(case: str, store: Path, picture: Path) -> None:
    name, line = WRONG_EXPERIMENTS[case]
    deleted(store, "gone")
    waits = spool_for(store, picture, name, 2)
    spooled(settings(store), picture)
    spool_for(store, picture, "other")
    lines = said(settings(store))
    assert any(line in each and "2 runs" in each for each in lines), lines
    assert len(runs(store)) == len(runs(store, "other")) == 1
    assert len(journal.run_files(waits)) == 2

    new = settings(store, experiment="new")
    again = spool_for(store, picture, "other")  # goes where it belongs all the same
    lines = sync(new)
    assert any("2 runs are now in the experiment new: " in each for each in lines), lines
    assert len(runs(store, "new")) == len(runs(store, "other")) == 2
    assert not waits.exists() and not again.exists()


def test_a_run_delivers_those_that_wait_for_an_experiment_that_is_gone(store: Path, picture: Path) -> None:
    """The configured experiment takes them, if it is given; if its own is gone as well, others are not held up."""
    deleted(store, "gone")
    waits = spool_for(store, picture, "gone")
    spool_for(store, picture, "other")
    for experiment, expected in (("gone", 1), (None, 1), ("new", 0)):
        tracker = tracking.open_tracker(settings(store, experiment=experiment))
        record_run(tracker, picture).finish()
        warnings = tracker.close()
        assert any("the experiment gone is deleted" in line for line in warnings), warnings
        assert len(runs(store, "other")) == 1
        assert len(journal.run_files(waits)) == expected
    assert len(runs(store, "new")) == 3  # its own, and one each of the two that waited


def changed(line: int, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        lines = file.read_text().splitlines()
        lines[line] = json.dumps(change(json.loads(lines[line])))
        file.write_text("\n".join(lines) + "\n")

    return write


DAMAGED: dict[str, Callable[[Path], None]] = {
    "zeros": lambda file: file.write_bytes(b"\0" * 100 + b"\n") and None,
    "no beginning": lambda file: file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n") and None,
    "an empty beginning": changed(0, lambda event: {**event, "begin": {}}),
    "a beginning of another kind": changed(0, lambda event: {**event, "begin": [1]}),
    "a name of another kind": changed(0, lambda event: {**event, "begin": {**event["begin"], "name": 5}}),
    "lists in place of events": changed(0, lambda event: [event]),
    "a number": changed(0, lambda event: 5),
    "a folder": lambda file: file.unlink() or file.mkdir(),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_entry(how: str, store: Path, picture: Path) -> None:
    folder = spooled(settings(store), picture, 3)
    second = journal.run_files(folder)[1]
    DAMAGED[how](second)
    spooled(settings(store), picture)
    lines = said(settings(store))
    assert any(second.name in line and ("remove it" in line or "make it readable" in line) for line in lines), lines
    assert lines[-1].startswith("1 run could not be delivered")
    assert len(runs(store)) == 3
    assert journal.run_files(folder) == [second]


LINES: dict[str, tuple[int, Callable[[dict[str, Any]], Any]]] = {
    "a text for a number": (3, lambda event: {**event, "metrics": [["value", "no number", 0]]}),
    "media without a path": (1, lambda event: {**event, "media": [{"step": 0}]}),
    "a number for a list": (2, lambda event: {**event, "metrics": 7}),
    "a file elsewhere": (1, lambda event: {**event, "texts": {"../../elsewhere.txt": "x"}}),
    "no time": (2, lambda event: {"metrics": event["metrics"]}),
}


@pytest.mark.parametrize("how", LINES)
def test_a_damaged_line_is_left_out_of_its_run(how: str, store: Path, picture: Path) -> None:
    folder = spooled(settings(store), picture)
    (file,) = journal.run_files(folder)
    changed(*LINES[how])(file)
    lines = sync(settings(store))
    assert any("a line of" in line and file.name in line for line in lines), lines
    (run,) = runs(store)
    assert run.info.status == "FINISHED" and run.data.params == {"a": "1"}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a tag": ("the tag a//b is left out", {"tags": {"a//b": "x", "kept": "y"}}),
    "a tag of a bad name": ("the tag a b is left out", {"tags": {"a\nb": "x", "kept": "y"}}),
    "a tag of a long name": ("is left out", {"tags": {"x" * 300: "x", "kept": "y"}}),
    "a parameter": ("the parameter ../a is left out", {"params": {"a": 1, "../a": 2}, "tags": {"kept": "y"}}),
    "a metric": ("the metric /m is left out", {"metrics": [["/m", 1.0, 0]], "tags": {"kept": "y"}}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_store_refuses_of_a_run_is_left_out_and_said(
    what: str, store: Path, picture: Path, tmp_path: Path
) -> None:
    folder = spooled(settings(store), picture)
    (file,) = journal.run_files(folder)
    line, values = REFUSED[what]
    changed(0, lambda event: {**event, **values})(file)
    # As a run that was begun before: MLflow checks no tags where it creates one.
    begin = json.loads(file.read_text().splitlines()[0])["begin"]
    number = client(store).create_experiment("diffuse", artifact_location=(tmp_path / "files").as_uri())
    client(store).create_run(number, tags={"diffuse.run": begin["id"]})
    lines = sync(settings(store))
    assert any(line in each for each in lines), lines
    (run,) = runs(store)
    assert run.info.status == "FINISHED" and run.data.params["a"] == "1" and run.data.tags["kept"] == "y"
    assert run.data.metrics["value"] == 1.0


def test_a_place_of_artifacts_that_is_gone(store: Path, picture: Path, tmp_path: Path) -> None:
    client(store).create_experiment("there", artifact_location=(tmp_path / "disk" / "files").as_uri())
    (tmp_path / "disk").write_text("no folder")
    waits = spool_for(store, picture, "there", 2)
    spooled(settings(store), picture)
    lines = said(settings(store))
    assert any("could not deliver the runs run, run: " in line and "make that place usable" in line for line in lines)
    assert len(runs(store)) == 1 and len(journal.run_files(waits)) == 2
    (tmp_path / "disk").unlink()
    sync(settings(store))
    assert len(runs(store, "there")) == 2 and not waits.exists()


@pytest.mark.parametrize("content", [None, "", "[]", '"x"', "{}", '{"uri": 5, "secret": false}', "foo"])
def test_runs_that_do_not_say_their_store(content: str | None, store: Path, picture: Path) -> None:
    waits = spooled(settings(store), picture)
    spooled(settings(store), picture)
    unnamed = TrackingConfig(name="mlflow", journal=str(waits.parent))
    if content is None:
        (waits / "store.json").unlink()
    elif content == "foo":  # as an earlier version took it
        values = json.loads((waits / "store.json").read_text())
        (waits / "store.json").write_text(json.dumps({**values, "uri": "foo://x", "file": None}))
    else:
        (waits / "store.json").write_text(content)
    lines = said(unnamed)
    assert any("does not say what store its runs are for" in line and "say tracking.uri=" in line for line in lines)
    assert len(runs(store)) == 1
    sync(settings(store))
    assert len(runs(store)) == 2 and not waits.exists()


@pytest.fixture
def strict(store: Path) -> Path:
    """A store that refuses names of runs, as PostgreSQL does those that its columns cannot hold."""
    with closing(sqlite3.connect(store)) as connection:
        connection.execute(
            "create trigger strict before insert on runs when length(new.name) > 250 or new.name like '%never%' "
            "begin select raise(abort, 'value too long'); end"
        )
    return store


LONG = "x" * 300


def named(store: Path, picture: Path, *names: str) -> Path:
    """Runs of these names, which wait."""
    folder = spooled(settings(store), picture, len(names))
    for file, name in zip(journal.run_files(folder), names, strict=True):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[0]["begin"]["name"] = name
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_whose_name_the_store_refuses_takes_a_new_one(strict: Path, picture: Path) -> None:
    waits = named(strict, picture, LONG, "good", "never")
    lines = said(settings(strict))
    advice = "tracking.run_name=NAME names it anew"
    assert any(f"the runs {'x' * 57}..., never: " in line and line.endswith(advice) for line in lines), lines
    assert [run.info.run_name for run in runs(strict)] == ["good"]
    assert len(journal.run_files(waits)) == 2

    named(strict, picture, "kept")
    lines = said(settings(strict, run_name="never again"))  # refused as well
    assert any(line.endswith(advice) for line in lines), lines
    lines = sync(settings(strict, run_name="mended"))
    assert any(f"the run {'x' * 57}... is now named mended: " in line for line in lines), lines
    assert sorted(run.info.run_name for run in runs(strict)) == ["good", "kept", "mended", "mended"]
    assert {run.info.status for run in runs(strict)} == {"FINISHED"}
    assert not waits.exists()


def test_a_new_name_and_a_new_experiment_together(strict: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted(strict, "gone")
    waits = named(strict, picture, LONG)
    values = json.loads((waits / "store.json").read_text())
    (waits / "store.json").write_text(json.dumps({**values, "experiment": "gone"}))
    monkeypatch.setenv("MLFLOW_RUN_NAME", "mended")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    lines = sync(settings(strict))
    assert [run.info.run_name for run in runs(strict, "new")] == ["mended"], lines


def test_messages_name_what_gave_the_address(strict: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named(strict, picture, LONG)
    assert said(settings(strict))[0].startswith(f"warning: tracking.uri=sqlite:///{strict}: could not deliver")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{strict}")
    line = f"MLFLOW_TRACKING_URI=sqlite:///{strict}: could not deliver"
    journaled = TrackingConfig(name="mlflow")
    assert said(journaled)[0].startswith(f"warning: {line}")
    tracker = tracking.open_tracker(journaled)
    record_run(tracker, picture).finish()
    assert any(each.startswith(line) for each in tracker.close())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{strict.parent}/none.db")
    for command in ("ui", "compare"):
        done = diffuse(command, *(["x"] if command == "compare" else []), cwd=strict.parent)
        assert f"MLFLOW_TRACKING_URI=sqlite:///{strict.parent}/none.db: nothing is recorded there" in done.err, done.err
