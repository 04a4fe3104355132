"""What a run leaves in an MLflow store, read back with MLflow's own client; and what becomes of a run without one."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command import SMOKE, diffuse
from damaged import damaged
from omegaconf import OmegaConf
from PIL import Image
from processes import LIMIT, fork
from tracked_runs import PROMPT, artifacts, client, make, runs, settings
from tracking_servers import unused_port

import diffuse as package
from diffuse import tracking
from diffuse.config.compose import compose_config
from diffuse.schema import COMPONENTS


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs = ((f"{prefix}{key}", value) for key, value in tree.items())
    return {
        k: v
        for key, value in pairs
        for k, v in (dotted(value, f"{key}.") if isinstance(value, dict) else {key: value}).items()
    }


def test_parameters_are_the_resolved_configuration_by_dotted_name(recorded: Any) -> None:
    store, _, _, fetched = recorded
    (run,) = runs(store)
    params = run.data.params
    assert params["prompt"] == PROMPT
    expected = {"seed": "7", "num_images": "2", "num_inference_steps": "3", "width": "64", "guidance_scale": "3.0"}
    expected |= {"scheduler.name": "ddim", "model.name": "tiny", "hardware.device": "cpu", "output.format": "png"}
    expected |= {"memory_profile.name": "cpu_only"}
    assert {key: params[key] for key in expected} == expected
    config = dotted(yaml.safe_load((fetched / "config.yaml").read_text()))
    assert config["tracking.uri"] == f"sqlite:///{store}"
    told = ("tracking.", "report.", "text_backend.")  # who is told of a run, or serves it, is nothing of the run
    config = {key: value for key, value in config.items() if value is not None and not key.startswith(told)}
    assert set(params) == set(config)
    composed = dotted(OmegaConf.to_container(compose_config(), resolve=True))
    elsewhere = {key for key in composed if key.split(".")[1:2] and key.split(".")[1] in COMPONENTS}  # nothing is
    plain = {key for key, value in composed.items() if value is not None and not isinstance(value, list)}
    assert {key for key in plain if not key.startswith(told)} - elsewhere <= set(params)
    assert "${" not in str(params)


def test_tags(recorded: Any) -> None:
    store, _, pictures, fetched = recorded
    (run,) = runs(store)
    tags = run.data.tags
    assert run.info.status == "FINISHED"
    assert tags["diffuse.version"] == package.__version__
    record = json.loads((fetched / "record.json").read_text())
    assert tags["diffuse.weights"] == f"{record['weights']['source']}@{record['weights']['sha256']}"
    digests = [json.loads(Image.open(path).text["diffuse"])["image"]["pixels_sha256"] for path in pictures]
    assert tags["diffuse.pixels_sha256"].split() == digests
    assert "diffuse.sweep" not in tags
    root = Path(package.__file__).resolve().parent.parent
    if (root / ".git").exists():
        commit = tags["mlflow.source.git.commit"]
        kind = subprocess.run(["git", "-C", root, "cat-file", "-t", commit], capture_output=True, text=True, check=True)
        assert kind.stdout.strip() == "commit"
        assert commit == record["git"]["commit"]


def test_metrics(recorded: Any) -> None:
    store, *_ = recorded
    (run,) = runs(store)
    metrics = run.data.metrics
    names = {f"time/{phase}_s" for phase in ("load", "encode", "denoise", "decode", "total", "step")}
    assert set(metrics) == names | {"memory/peak_gib", "memory/rss_peak_gib"}
    phases = [metrics[f"time/{phase}_s"] for phase in ("load", "encode", "denoise", "decode")]
    assert all(seconds >= 0 for seconds in phases)
    assert sum(phases) <= metrics["time/total_s"] + 1e-6
    steps = client(store).get_metric_history(run.info.run_id, "time/step_s")
    assert [metric.step for metric in steps] == [0, 1, 2]
    assert 0 < sum(metric.value for metric in steps) <= metrics["time/denoise_s"]
    assert 0.05 < metrics["memory/rss_peak_gib"] < 100
    assert metrics["memory/peak_gib"] == 0  # there is no device but the CPU


def test_artifacts(recorded: Any) -> None:
    _, _, pictures, fetched = recorded
    assert sorted(path.name for path in fetched.iterdir()) == [
        "config.yaml",
        "images",
        "media",
        "overrides.yaml",
        "record.json",
    ]
    assert len(pictures) == 2
    for path in pictures:
        assert (fetched / "media" / path.name).read_bytes() == path.read_bytes()
    overrides = yaml.safe_load((fetched / "overrides.yaml").read_text())
    assert overrides[: len(SMOKE)] == list(SMOKE)
    assert overrides[-4:-1] == [f"prompt={PROMPT}", "seed=7", "num_images=2"]
    record = json.loads((fetched / "record.json").read_text())
    assert record["request"]["prompt"] == PROMPT
    assert [image["seed"] for image in record["images"]] == [7, 8]


def test_the_recorded_configuration_makes_the_same_request(recorded: Any) -> None:
    _, _, _, fetched = recorded
    config = yaml.safe_load((fetched / "config.yaml").read_text())
    assert (config["seed"], config["width"], config["height"], config["negative_prompt"]) == (7, 64, 64, "")
    assert config["prompt"] == PROMPT


def test_pictures_are_logged_as_images_that_mlflow_shows(recorded: Any) -> None:
    """The page's grid finds images by the name `KEY+step+N+...`."""
    _, _, pictures, fetched = recorded
    for step, path in enumerate(pictures):
        (shown,) = (fetched / "images").glob(f"image+step+{step}+*.png")
        np.testing.assert_array_equal(np.asarray(Image.open(shown).convert("RGB")), np.asarray(Image.open(path)))


def test_a_second_run_goes_beside_the_first(store: Path, tmp_path: Path) -> None:
    make(store, tmp_path, "seed=1", "output.name=one")
    make(store, tmp_path, "seed=2", "output.name=two", "tracking.experiment=another name")
    make(store, tmp_path, "seed=3", "output.name=three")
    assert [run.info.run_name for run in runs(store)] == ["one", "three"]
    assert [run.data.params["seed"] for run in runs(store, "another name")] == ["2"]
    assert list((tmp_path / "mlartifacts").glob("*/artifacts/media/three.png"))


def test_a_prompt_file_makes_a_run_of_each_prompt(store: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\n\n  a blue apple  \n")
    done = diffuse(
        "model=tiny", "hardware=cpu", "num_inference_steps=1", "prompt_file=prompts.txt",
        f"tracking.uri=sqlite:///{store}", "output.dir=out", cwd=tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert [run.data.params["prompt"] for run in runs(store)] == ["a red apple", "a blue apple"]
    assert not any("prompt_file" in run.data.params for run in runs(store))


def test_the_jobs_of_a_sweep_are_flat_runs_with_a_common_tag(store: Path, tmp_path: Path) -> None:
    make(store, tmp_path, "-m", "seed=1,2", "report.make=false")
    (summary,) = (run for run in runs(store) if run.data.tags.get("diffuse.kind") == "sweep")
    made = [run for run in runs(store) if run.info.run_id != summary.info.run_id]
    assert (summary.info.run_name, summary.data.metrics["jobs/made"]) == ("seed", 2)
    assert summary.data.tags["diffuse.sweep"] == made[0].data.tags["diffuse.sweep"]
    assert sorted(run.data.params["seed"] for run in made) == ["1", "2"]
    assert sorted(run.info.run_name for run in made) == ["seed=1", "seed=2"]  # what tells them apart
    assert len({run.data.tags["diffuse.sweep"] for run in made}) == 1
    assert not any("mlflow.parentRunId" in run.data.tags for run in made)


def test_a_failed_run_is_recorded_with_its_error(store: Path, tmp_path: Path) -> None:
    folder = damaged(tmp_path / "damaged")
    done = diffuse(
        *SMOKE, f"model.source={folder}", f"tracking.uri=sqlite:///{store}", "output.dir=out", "seed=3", cwd=tmp_path
    )
    assert done.status == 1
    assert done.out == ""
    assert "Traceback" not in done.err
    (run,) = runs(store)
    assert run.info.status == "FAILED"
    assert run.info.end_time >= run.info.start_time
    assert "vae" in run.data.tags["diffuse.error"] and "RunError" in run.data.tags["diffuse.error"]
    assert run.data.params["seed"] == "3"  # the configuration went first
    names = {entry.path for entry in client(store).list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "overrides.yaml", "record.json"}
    assert not (tmp_path / "out").exists()


AWKWARD = {
    "emoji": "🚀👩‍🚀 ☂️ e\u0301 \u202e right to left",
    "long": "long, " * 2000,
    "long emoji": "🚀" * 7000,
    "line breaks": "first\nsecond\r\n\tthird",
    "like a number": "1e5",
    "like nothing": "null",
    "empty": "",
    "interpolations": "${seed} ${ ${oc.env:HOME} \\${x}",
    "question marks": "???",
    "spaces": "  both ends  ",
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_prompts_are_parameters(name: str, store: Path, tmp_path: Path) -> None:
    prompt = AWKWARD[name]
    done = make(store, tmp_path, f"prompt={prompt}")
    assert "tracking.uri" not in done.err
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.params["prompt"] == prompt[:6000]
    record = json.loads((artifacts(store, run, tmp_path / "fetched") / "record.json").read_text())
    assert record["request"]["prompt"] == prompt  # whole, wherever parameters are cut


def test_a_folder_whose_name_is_no_text(store: Path, tmp_path: Path) -> None:
    """Paths are bytes; Python has those that are not UTF-8 as lone surrogates, which no store takes."""
    done = make(store, tmp_path, "output.dir=caf\udce9")
    assert "tracking.uri" not in done.err
    (run,) = runs(store)
    assert (run.info.status, run.data.params["output.dir"]) == ("FINISHED", "caf\\udce9")
    assert list((tmp_path / "caf\udce9").glob("*.png"))
    assert list((artifacts(store, run, tmp_path / "fetched") / "media").iterdir())


@pytest.fixture
def unreachable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a store that is not to be had, for one of several reasons."""
    (tmp_path / "file").write_bytes(b"this is no database " * 500)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        yield {
            "no server": f"http://127.0.0.1:{unused_port()}",
            "a server that says nothing": f"http://127.0.0.1:{deaf.getsockname()[1]}",
            "no such host": "http://nowhere.invalid:5000",
            "not a database": f"sqlite:///{tmp_path}/file",
            "an unknown database": "postgresql://user:hunter2@127.0.0.1:1/mlflow",
        }[request.param]


@pytest.mark.parametrize(
    "unreachable",
    [
        "no server",
        "a server that says nothing",
        "no such host",
        "not a database",
        "an unknown database",
    ],
    indirect=True,
)
def test_a_store_that_cannot_be_reached_costs_no_picture(unreachable: str, tmp_path: Path) -> None:
    done = make(unreachable, tmp_path)
    (path,) = done.paths
    assert Image.open(tmp_path / path).size == (64, 64)
    warnings = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1, done.err
    assert "tracking.uri" in warnings[0]
    assert "pictures are saved all the same" in warnings[0]
    assert "Traceback" not in done.err
    assert "hunter2" not in done.err


def test_a_deleted_experiment_costs_no_picture(store: Path, tmp_path: Path) -> None:
    made = client(store).create_experiment("gone")
    client(store).delete_experiment(made)
    done = make(store, tmp_path, "tracking.experiment=gone")
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert "deleted" in warning


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "file:///tmp/runs", "runs", "./runs", ""])
def test_an_address_that_can_hold_no_runs_is_refused_beforehand(uri: str, tmp_path: Path) -> None:
    done = diffuse(*SMOKE, f"tracking.uri={uri}", "output.dir=out", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1 and "tracking.uri" in done.err
    assert list(tmp_path.iterdir()) == []


def _record_runs(file: Path, name: str) -> None:
    tracker = tracking.open_tracker(settings(file))
    for number in range(3):
        run = tracker.start(f"{name}{number}", {"number": number}, {}, {"note.txt": name})
        run.log_metrics({"value": number})
        run.finish()
    warnings = tracker.close()
    assert warnings == [], warnings


def test_processes_that_begin_at_once_on_a_fresh_store_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "new" / "mlflow.db"
    processes = [fork(_record_runs, file, name) for name in "abcd"]
    for process in processes:
        process.join(LIMIT)
    assert {process.exitcode for process in processes} == {0}
    made = runs(file)
    assert sorted(run.info.run_name for run in made) == [f"{name}{i}" for name in "abcd" for i in range(3)]
    assert all(
        run.info.status == "FINISHED" and run.data.metrics["value"] == float(run.data.params["number"]) for run in made
    )
    left = {path.name for path in file.parent.iterdir()}
    assert left - {".mlflow.db.lock"} == {"mlflow.db", "mlartifacts"}


def test_no_tracking_leaves_no_store(tmp_path: Path) -> None:
    done = diffuse(*SMOKE, "tracking=none", "output.dir=out", cwd=tmp_path)
    assert done.status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
