"""Checks that what an earlier version made, in tests/data/earlier, is reproduced, compared, completed and delivered."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Done, diffuse, jobs_in
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

import diffuse as package

EARLIER = Path(__file__).resolve().parents[1] / "data" / "earlier"
PICTURES = sorted(path.name for path in (EARLIER / "pictures").iterdir() if path.suffix != ".json")
STARTED_FROM = {
    "from_a_picture.png": (f"input_image={EARLIER / 'inputs' / 'input.png'}",),
    "inpainted.png": (
        f"input_image={EARLIER / 'inputs' / 'input.png'}",
        f"mask_image={EARLIER / 'inputs' / 'mask.png'}",
    ),
}
JOURNAL = "/home/someone/pictures/journal"  # where the journal was, by the paths in it

# How near a picture must be to the earlier one on another platform, and to one in a file that is not lossless: PSNR.
NEAR, LOSSY = 50.0, 25.0


def here() -> dict[str, str]:
    """Returns all that decides how sums are rounded. Virtual machines give different processors the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    told = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part", "CPU implementer")
    kept = [line for line in lines if line.partition(":")[0].strip() in told] or lines
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


SAME_PLATFORM = here() == json.loads((EARLIER / "platform.json").read_text())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def check_same(path: Path, earlier: Path) -> None:
    """Checks that a picture is the earlier one: to the bit where both are of one platform and lossless."""
    ours, theirs = pixels(path), pixels(earlier)
    assert ours.shape == theirs.shape and ours.std() > 5
    error = float(np.mean(np.square(ours.astype(int) - theirs)))
    apart = 10 * math.log10(255**2 / error) if error else math.inf
    if earlier.suffix == ".png":
        assert apart >= (math.inf if SAME_PLATFORM else NEAR)
    else:
        assert apart >= LOSSY


def again(target: Any, *given: str, count: int = 1, cwd: Path) -> list[Path]:
    """Makes what `target` names again, and returns the new pictures."""
    done = diffuse("reproduce", target, "output.dir=again", *given, cwd=cwd)
    assert done.status == 0 or (done.status == 1 and not SAME_PLATFORM), done.err
    assert len(done.paths) == count
    if SAME_PLATFORM:
        assert all(f"{path}: identical" in done.err for path in done.paths)
    return [cwd / path for path in done.paths]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_reproduced(name: str, tmp_path: Path) -> None:
    file = EARLIER / "pictures" / name
    (path,) = again(file, "tracking=none", *STARTED_FROM.get(name, ()), cwd=tmp_path)
    check_same(path, file)


def test_a_run_is_reproduced_from_its_record(tmp_path: Path) -> None:
    paths = again(EARLIER / "pictures" / "record.json", "tracking=none", count=2, cwd=tmp_path)
    for path, name in zip(paths, ("two.png", "two_1.png"), strict=True):
        check_same(path, EARLIER / "pictures" / name)


@pytest.mark.parametrize("file", sorted((EARLIER / "sweep").glob("*/job.json")), ids=lambda file: file.parent.name)
def test_a_job_is_reproduced(file: Path, tmp_path: Path) -> None:
    """Makes a job again that was made together with others, of which some are gone."""
    (path,) = again(file, "tracking=none", cwd=tmp_path)
    (earlier,) = file.parent.glob("*.png")
    check_same(path, earlier)


def compared(*arguments: Any, cwd: Path) -> list[dict[str, str]]:
    """Compares, and returns the rows of the table."""
    done = diffuse("compare", *arguments, "--out", cwd / "report", cwd=cwd)
    assert done.status == 0, done.err
    assert {path.name for path in done.paths} >= {"report.html", "table.csv"}
    with open(cwd / "report" / "table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pictures_are_compared(tmp_path: Path) -> None:
    rows = compared(EARLIER / "pictures", cwd=tmp_path)
    assert sorted(Path(row["file"]).name for row in rows) == PICTURES
    samplers = {Path(row["file"]).stem: row["scheduler"] for row in rows}
    others = {"euler_ancestral": "euler_ancestral", "dpmpp_2m": "dpmpp_2m", "timesteps": "lcm"}
    assert samplers == {Path(name).stem: others.get(Path(name).stem, "ddim") for name in PICTURES}
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_a_sweep_is_compared(tmp_path: Path) -> None:
    rows = compared(EARLIER / "sweep", cwd=tmp_path)
    assert sorted((row["seed"], row["num_inference_steps"]) for row in rows) == [
        (seed, steps) for seed in "13" for steps in "12"
    ]
    assert sorted(bool(row["ssim"]) for row in rows) == [False, False, True, True]  # two are what others are held to


SWEEPS = {  # what was typed, how many jobs are there and how many are missing, and the folders of those
    "sweep": (
        ("seed=1,2,3", "num_inference_steps=1,2"),
        4,
        {"num_inference_steps_1-seed_2-1225af97", "num_inference_steps_2-seed_2-d5da7ab5"},
    ),
    "drawn": (
        ("prompt=choice(a cactus on a pink background,a cat)", "num_inference_steps=1"),
        1,
        {"prompt_a_cat-1986fcaa"},
    ),
}


def swept(name: str, folder: Path, cwd: Path) -> Done:
    done = diffuse(
        "-m", "hardware=cpu", "hardware.threads=1", "model=tiny", "model.source=tiny", "tracking=none",
        "report.make=false", f"output.dir={folder}", *SWEEPS[name][0], cwd=cwd,
    )  # fmt: skip
    assert done.status == 0, done.err
    return done


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_completed(name: str, tmp_path: Path) -> None:
    """Checks that jobs that are there stay as they are, and that missing ones come under the names that they had, with
    the seed that was drawn for all."""
    _, there, missing = SWEEPS[name]
    (tmp_path / "tiny").symlink_to(Path(package.__file__).parent / "tiny" / "checkpoint")
    folder = Path(shutil.copytree(EARLIER / name, tmp_path / "copy"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*/*")}
    known = {path.parent.name for path in before}

    done = swept(name, folder, tmp_path)

    assert f"{len(missing)} made, {there} were there, 0 failed" in done.err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path.parent.name for path in folder.glob("*/job.json")} == known | missing
    was, now = (json.loads((path / "sweep.json").read_text()) for path in (EARLIER / name, folder))
    assert [now[part] for part in ("identity", "created", "seed")] == [
        was[part] for part in ("identity", "created", "seed")
    ]
    jobs = jobs_in(folder)
    assert {(job["status"], job["sweep"]) for job in jobs} == {("done", was["identity"])}
    if was["seed"] is not None:
        assert {job["record"]["request"]["seed"] for job in jobs} == {was["seed"]}
    assert all(pixels(path).std() > 5 for path in done.paths)
    assert f"0 made, {there + len(missing)} were there" in swept(name, folder, tmp_path).err


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Delivers the runs of the journal, and returns its folder, which has the store too."""
    folder = tmp_path_factory.mktemp("delivered")
    shutil.copytree(EARLIER / "journal", folder, dirs_exist_ok=True)
    for path in folder.glob("pending/*/*"):
        path.write_text(path.read_text().replace(JOURNAL, str(folder)))
    done = diffuse("sync", "tracking.journal=pending", cwd=folder)
    assert done.status == 0 and "warning" not in done.err, done.err
    return folder


def runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/store/mlflow.db")
    return list(client.search_runs([found.experiment_id for found in client.search_experiments()]))


STATUS = {
    "two": "FINISHED",
    "a_rocket_on_a_blue_background_2": "FAILED",
    "seed=1": "FINISHED",
    "seed=2": "FINISHED",
    "seed": "FINISHED",  # the sweep itself
    "a_rocket_on_a_blue_background_3": "KILLED",  # by Ctrl-C
    "a_rocket_on_a_blue_background_4": "KILLED",
}


def test_what_waits_is_delivered_once(delivered: Path) -> None:
    found = runs(delivered)
    assert {run.info.run_name: run.info.status for run in found} == STATUS and len(found) == len(STATUS)
    assert Counter(run.data.tags["diffuse.run"] for run in found).most_common(1)[0][1] == 1
    errors = {run.info.run_name[-1]: run.data.tags.get("diffuse.error", "") for run in found}
    assert "the vae gave NaN" in errors["2"] and "KeyboardInterrupt" in errors["3"]
    assert "ended before the run did" in errors["4"]
    assert all(run.info.end_time >= run.info.start_time for run in found)
    assert not (delivered / "pending").exists()
    done = diffuse("sync", "tracking.journal=pending", cwd=delivered)
    assert done.status == 0 and "nothing waits" in done.err
    assert len(runs(delivered)) == len(STATUS)


def test_files_are_delivered(delivered: Path) -> None:
    """Checks the pictures and the report to the byte, and the records."""
    expected = {
        "two": {"media/two.png": "made/two.png", "media/two_1.png": "made/two_1.png"},
        "seed": {f"report/{path.name}": f"sweep/report/{path.name}" for path in delivered.glob("sweep/report/*")},
    }
    for path in delivered.glob("sweep/seed_*/*.png"):
        expected[path.parent.name.partition("-")[0].replace("_", "=")] = {
            f"media/{path.name}": str(path.relative_to(delivered))
        }
    for run in runs(delivered):
        name, folder = run.info.run_name, Path(run.info.artifact_uri.removeprefix("file://"))
        assert folder.is_relative_to(delivered / "store")
        there = {str(path.relative_to(folder)) for path in folder.glob("media/*")}
        there |= {str(path.relative_to(folder)) for path in folder.glob("report/*")}
        assert there == set(expected.get(name, {}))
        for file, kept in expected.get(name, {}).items():
            assert (folder / file).read_bytes() == (EARLIER / "journal" / kept).read_bytes()
        assert (folder / ("sweep.json" if name == "seed" else "record.json")).is_file()
        if "seed=" in name or name == "two":
            digests = [image["pixels_sha256"] for image in json.loads((folder / "record.json").read_text())["images"]]
            assert run.data.tags["diffuse.pixels_sha256"].split() == digests
            assert run.data.metrics["time/total_s"] > 0 and run.data.params["model.name"] == "tiny"


def test_a_delivered_run_is_reproduced(delivered: Path, tmp_path: Path) -> None:
    (run,) = (run for run in runs(delivered) if run.info.run_name == "two")
    store = f"tracking.uri=sqlite:///{shutil.copy(delivered / 'store' / 'mlflow.db', tmp_path)}"
    paths = again(run.info.run_id, store, count=2, cwd=tmp_path)
    for path, name in zip(paths, ("two.png", "two_1.png"), strict=True):
        check_same(path, EARLIER / "journal" / "made" / name)


def test_a_delivered_sweep_is_compared(delivered: Path, tmp_path: Path) -> None:
    sweep = json.loads((EARLIER / "journal" / "sweep" / "sweep.json").read_text())["identity"]
    rows = compared(sweep[:12], f"tracking.uri=sqlite:///{delivered}/store/mlflow.db", cwd=tmp_path)
    assert sorted(row["seed"] for row in rows) == ["1", "2"] and all(len(row["run_id"]) == 32 for row in rows)
