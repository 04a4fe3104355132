"""A weights file that is cut in the middle of a step ends the command in a line, and nothing else does."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command import SMOKE, diffuse, finished, start
from processes import launch
from safetensors.torch import load_file, save_file
from tracked_runs import runs, settings, sync

from diffuse.checkpoints.bus_error import watch_cut_files
from diffuse.config.groups import TINY
from diffuse.media.files import remove_unfinished, write_new_file, write_new_folder

LINE = "was cut short while it was in use; copy or download it again"
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
CASES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "tracked": (UNET, "UNetMidBlock", "cut", ()),
    "threads": (UNET, "UNetMidBlock", "cut", ("tracking=none", "hardware.threads=2")),
    "text": (TEXT, "_TextTransformer", "cut", ("tracking=none",)),
    "decoder": (VAE, "_MidBlock", "cut", ("tracking=none",)),
    "streaming": (UNET, "UNetMidBlock", "cut", ("tracking=none", "memory_profile=streaming")),
    "sweep": (UNET, "UNetMidBlock", "cut", ("tracking=none", "-m", "seed=1,2", "output.dir=out")),
    "killed": (UNET, "UNetMidBlock", "kill", ("tracking=none",)),
    "another file": (UNET, "UNetMidBlock", "another", ("tracking=none",)),
    "guest": (UNET, "UNetMidBlock", "guest", ()),
    "faulthandler": (UNET, "UNetMidBlock", "faulthandler", ("tracking=none",)),
    "wakeup": (UNET, "UNetMidBlock", "wakeup", ("tracking=none",)),
}
CUT = ("tracked", "threads", "text", "decoder", "streaming", "sweep")


class Ended(NamedTuple):
    status: int
    out: str
    err: str
    folder: Path
    model: Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in the dtype it computes in on a CPU, so that its tensors stay in their files."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    shutil.copytree(TINY, folder)
    for path in folder.rglob("*.safetensors"):
        save_file({key: tensor.float() for key, tensor in load_file(path).items()}, path)
    return folder


@pytest.fixture(scope="module")
def ended(model: Path, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    root = tmp_path_factory.mktemp("cut")
    cases: dict[str, Any] = {}
    for name, (file, before, way, more) in CASES.items():
        folder, own = root / name.replace(" ", "-"), root / f"{name.replace(' ', '-')}-model"
        shutil.copytree(model, own)
        folder.mkdir()
        tracking: tuple[str, ...] = ()
        if name == "tracked":
            shutil.copy(empty, folder / "mlflow.db")
            tracking = (f"tracking.uri=sqlite:///{folder}/mlflow.db",)
        arguments = [*SMOKE[:-1], f"model.source={own}", *tracking, *more]
        if way == "guest":
            arguments = [str(own)]
        cases[name] = {"folder": str(folder), "arguments": arguments, "file": str(own / file)}
        cases[name] |= {"before": before, "way": way}
    script = Path(__file__).parents[1] / "support" / "cut_weights.py"
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONFAULTHANDLER"}
    process = launch([sys.executable, script], env=environment, **streams)
    out, _ = process.communicate(json.dumps(cases))
    found = {}
    for name, status in json.loads(out).items():
        folder = Path(cases[name]["folder"])
        texts = [folder.with_name(f"{folder.name}-log.{stream}").read_text() for stream in ("out", "err")]
        found[name] = Ended(status, *texts, folder, folder.with_name(f"{folder.name}-model"))
    return found


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_in_the_middle_of_a_step(name: str, ended: dict[str, Ended]) -> None:
    end = ended[name]
    assert (end.status, end.out) == (2, ""), end.err
    assert end.err.splitlines()[-1] == f"diffuse: {end.model / CASES[name][0]}: {LINE}"
    assert "Traceback" not in end.err
    assert not [path for path in end.folder.rglob("*") if path.suffix in (".png", ".tmp")]


def test_the_run_is_recorded_as_failed(ended: dict[str, Ended]) -> None:
    store = ended["tracked"].folder / "mlflow.db"
    sync(settings(store))  # where the process that delivers has not
    (run,) = runs(store)
    assert run.info.status == "FAILED"
    assert LINE in run.data.tags["diffuse.error"]


def test_a_sweep_goes_on_where_it_was(ended: dict[str, Ended], model: Path) -> None:
    end = ended["sweep"]
    shutil.copy(model / UNET, end.model / UNET)
    more = CASES["sweep"][3]
    done = diffuse(*SMOKE[:-1], f"model.source={end.model}", *more, cwd=end.folder)
    assert done.status == 0 and len(done.paths) == 2, done.err


@pytest.mark.parametrize("name", ["killed", "another file", "guest", "faulthandler", "wakeup"])
def test_other_bus_errors_end_as_before(name: str, ended: dict[str, Ended]) -> None:
    end = ended[name]
    assert end.status == -signal.SIGBUS, end.err
    assert LINE not in end.err
    assert ("Fatal Python error: Bus error" in end.err) == (name == "faulthandler")


def test_a_program_that_calls_diffuse_keeps_its_handlers(model: Path) -> None:
    before = signal.getsignal(signal.SIGBUS), faulthandler.is_enabled()
    with watch_cut_files(lambda: None, None):
        assert (signal.getsignal(signal.SIGBUS), faulthandler.is_enabled()) == before
        other = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(other)
        assert other == -1


SITE = """
import os, sys
if any("loky" in part for part in sys.orig_argv) and any("popen_loky" in part for part in sys.orig_argv):
    sys.path.insert(0, os.environ["CUT_SUPPORT"])
    from pathlib import Path
    from cut_weights import cut_before
    cut_before("UNetMidBlock", Path(os.environ["CUT_FILE"]), "cut")
"""


def test_a_worker_of_a_sweep(model: Path, tmp_path: Path) -> None:
    """It says the line; the worker in its place finds that the file is short, which the jobs fail with."""
    pytest.importorskip("joblib")
    own = tmp_path / "model"
    shutil.copytree(model, own)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": paths, "CUT_FILE": str(own / UNET), "CUT_SUPPORT": str(Path(__file__).parents[1] / "support")}
    joblib = (
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
        "output.dir=out",
        "tracking=none",
        "report.make=false",
    )
    process = start("-m", *SMOKE[:-1], f"model.source={own}", *joblib, "seed=1,2", cwd=tmp_path, env=env)
    done = finished(process)
    assert done.status == 2, done.err
    assert f"{own / UNET}: {LINE}" in done.err.splitlines(), done.err
    assert done.err.splitlines()[-1].startswith(f"diffuse: {own / UNET}: is not a readable safetensors file")
    assert "Bus error" not in done.err


def test_what_is_being_written_is_removed(tmp_path: Path) -> None:
    """As before the process ends while another thread saves."""

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        remove_unfinished()
        assert list(tmp_path.iterdir()) == []
        path.write_bytes(b"whole")

    def fill(folder: Path) -> None:
        (folder / "half").touch()
        remove_unfinished()
        assert not folder.exists()
        folder.mkdir()

    path = write_new_file(write, tmp_path, "a", "png")
    path.unlink()
    write_new_folder(fill, tmp_path, "b").rmdir()
    path = write_new_file(b"whole", tmp_path, "c", "png")
    remove_unfinished()
    assert path.read_bytes() == b"whole"
