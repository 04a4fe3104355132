"""What cannot be made is refused in one line that says what to do and leaves nothing; what breaks off, no ruins."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import SMOKE, Done, diffuse, finished, start
from fork_server import Ended, ForkServer, fork_server
from PIL import Image
from processes import LIMIT
from safetensors.torch import load_file, save_file

import diffuse as package
from diffuse.media.files import TEMPORARY
from diffuse.media.load import read_record
from diffuse.media.pixels import pixels_sha256

TINY = Path(package.__file__).parent / "tiny" / "checkpoint"
WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
QUICK = ("hardware.threads=1", "num_inference_steps=1")  # should one be let through


def assert_refused(done: Done, *said: str) -> None:
    """Status 2, nothing on standard output, one line on standard error that says all this."""
    assert done.status == 2, done.err
    assert done.out == ""
    assert done.err.startswith("diffuse: ") and done.err.endswith("\n") and done.err.count("\n") == 1, done.err
    for words in said:
        assert words in done.err


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """The folder to run in, which is empty before and after."""
    folder = tmp_path / "here"
    folder.mkdir()
    yield folder
    assert list(folder.rglob("*")) == []


# Arguments, and what the line has to say: the thing, and what to do about it.
REQUESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown group option": (("scheduler=dimm",), ("scheduler=dimm", "did you mean ddim?")),
    "unknown model": (("model=nothing_like_it",), ("model=nothing_like_it", "sd21", "tiny")),
    "unknown experiment": (("experiment=smoek",), ("experiment=smoek", "did you mean smoke?")),
    "misspelled key": (("promt=x",), ("promt=x", "did you mean prompt?")),
    "misspelled key of a group": (("scheduler.etaa=0.5",), ("scheduler.etaa", "did you mean scheduler.eta?")),
    "unknown option": (("--sede=1",), ("--sede=1", "diffuse generate --help")),
    "no override": (("rocket",), ("rocket", "NAME=VALUE")),
    "two values": (("seed=1,2",), ("seed=1,2", "diffuse -m")),
    "seed is text": (("seed=abc",), ("seed=abc", "whole number")),
    "seed is negative": (("seed=-1",), ("seed=-1", "from 0 to")),
    "seed is too large": (("seed=9223372036854775808",), ("seed=9223372036854775808", "from 0 to 9223372036854775807")),
    "seed of the last image is too large": (
        ("seed=9223372036854775806", "num_images=3"),
        ("seed=9223372036854775806", "for 3 images"),
    ),
    "width off the grid": (("width=65",), ("width=65", "multiple of 8", "try 64")),
    "no height": (("height=0",), ("height=0", "1 or more")),
    "wider than the profile": (("width=2048",), ("2048", "cpu_only", "memory_profile.max_side=null")),
    "no steps": (("num_inference_steps=0",), ("num_inference_steps=0", "1 or more")),
    "more steps than training had": (("num_inference_steps=1001",), ("num_inference_steps=1001", "from 1 to 1000")),
    "no images": (("num_images=0",), ("num_images=0", "1 or more")),
    "guidance is no number": (("guidance_scale=nan",), ("guidance_scale=nan", "0 or more")),
    "guidance is negative": (("guidance_scale=-1",), ("guidance_scale=-1", "0 or more", "switch guidance off")),
    "guidance is rescaled too far": (("guidance_rescale=1.5",), ("from 0 to 1", "0 leaves the contrast")),
    "layers are skipped backwards": (("clip_skip=-1",), ("clip_skip=-1", "0 or null leaves out none")),
    "guidance is infinite": (("guidance_scale=inf",), ("guidance_scale=inf", "0 or more")),
    "an option of the sampler": (("scheduler.eta=7",), ("scheduler.eta=7", "from 0 to 1")),
    "an unknown spacing": (("scheduler.timestep_spacing=trial",), ("timestep_spacing=trial", "did you mean trailing?")),
    "a component that is not there": (
        ("memory_profile.on_device=[unt]",),
        ("memory_profile.on_device", "unt", "text_encoder, unet, vae"),
    ),
    "a batch of nothing": (("memory_profile.batch_size=0",), ("memory_profile.batch_size=0", "1 or more")),
    "float16 on a CPU": (("hardware.dtype=float16",), ("hardware.dtype=float16", "float32")),
    "no threads": (("hardware.threads=0",), ("hardware.threads=0", "null")),
    "a variant that is not there": (("model.variant=fp16",), ("fp16", "model.variant=null")),
    "a source that does not exist": (("model.source=/does/not/exist",), ("/does/not/exist", "set model.source")),
    "a source that is no name": (("model.source=a//b",), ("a//b", "set model.source")),
    "no source": (("model.source=",), ("model.source", "folder")),
    "another target": (("model._target_=os.system",), ("model._target_=os.system", "conf/model")),
    "a store that can hold no runs": (("tracking.uri=/tmp",), ("tracking.uri=/tmp", "sqlite:///FILE")),
    "a format that is not written": (("output.format=bmp",), ("output.format=bmp", "png, jpg, webp")),
    "no quality": (("output.quality=0",), ("output.quality=0", "1 to 100")),
    "a name that leads elsewhere": (("output.name=../x",), ("output.name='../x'", "plain name")),
    "a name with NUL": (("output.name=a\0b",), (r"output.name='a\x00b'", "plain name")),
    "an empty name": (("output.name=",), ("output.name=''", "plain name")),
    "a folder with NUL": (("output.dir=a\0b",), ("output.dir=", "choose another folder")),
    "a folder's name too long": (("output.dir=" + "x" * 300,), ("too long", "choose another folder")),
    "below a file": ((f"output.dir={__file__}/x",), (f"{__file__} is a file", "choose a folder")),
    "below a file, as a sweep": (("-m", f"output.dir={__file__}/x", "seed=1,2"), (__file__, "choose another folder")),
    "below a device": (("output.dir=/dev/null/x",), ("output.dir=/dev/null/x", "choose a folder")),
    "prompt_file is missing": (("prompt_file=no.txt",), ("prompt_file=no.txt", "No such file", "one prompt a line")),
    "prompt_file is a folder": (("prompt_file=/",), ("prompt_file=/", "one prompt a line")),
    "prompt_file with NUL": (("prompt_file=a\0b",), ("prompt_file=a", "one prompt a line")),
    "prompt_file's name too long": (("prompt_file=" + "x" * 300,), ("too long", "one prompt a line")),
    "two sources of prompts": (("prompt=x", "prompt_file=y"), ("prompt_file", "leave one of them out")),
    "doctor": (("doctor", "bogus=1"), ("bogus", "diffuse --help")),
    "download of a folder that is missing": (
        ("download", "model.source=./missing"),
        ("./missing", "set model.source"),
    ),
    "download of nothing": (("download", "model.source=null"), ("model.source", "folder")),
    "ui before there is anything": (("ui",), ("outputs/mlflow.db", "make a picture first")),
    "a sweep with a value of the wrong type": (("-m", "seed=1,abc"), ("seed=abc", "whole number")),
    "a sweep over what is not there": (("-m", "model=tiny,tiyn"), ("model=tiyn", "did you mean tiny?")),
    "a sweep with a misspelled key": (("-m", "seed=1,2", "promt=x"), ("promt=x", "did you mean prompt?")),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_wrong_request(name: str, here: Path) -> None:
    arguments, said = REQUESTS[name]
    commands = ("doctor", "download", "ui")
    quick = [item for item in QUICK if not any(item.partition("=")[0] + "=" in argument for argument in arguments)]
    if arguments[0] in commands:
        done = diffuse(*arguments, cwd=here)
    else:
        done = diffuse("hardware=cpu", *quick, *arguments, cwd=here)
    assert_refused(done, *said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no prompt"),
        (b" \n\n", "one a line"),
        ("fusée".encode("latin-1"), "not UTF-8"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_wrong_file_of_prompts(content: bytes, said: str, here: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    assert_refused(diffuse(*QUICK, f"prompt_file={file}", cwd=here), f"prompt_file={file}", said)


def test_one_wrong_prompt_of_several_stops_all(here: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a rocket\na cactus\n")
    assert_refused(diffuse(*QUICK, f"prompt_file={file}", "width=65", cwd=here), "width=65")


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("seed=abc",), {}, ("seed=abc", "whole number")),
        (("hardware=cuda",), {"CUDA_VISIBLE_DEVICES": ""}, ("hardware=cuda", "CUDA", "or use hardware=cpu")),
        (("-m", "seed=1,2", "model.source=./no"), {}, ("./no: does not exist; set model.source",)),
    ],
)
def test_in_a_process_of_its_own(
    arguments: tuple[str, ...], variables: dict[str, str], said: tuple[str, ...], here: Path
) -> None:
    """A sweep of which all jobs are wrong for one reason says it once."""
    assert_refused(finished(start(*QUICK, *arguments, cwd=here, env=variables)), *said)


def test_one_wrong_job_of_a_sweep(tmp_path: Path) -> None:
    request = (*SMOKE, "tracking=none", "report.make=false", "output.dir=out", "output.name=x")
    done = diffuse("-m", *request, "width=64,65,72", cwd=tmp_path)
    assert done.status == 2
    assert [path.name for path in done.paths] == ["x.png", "x.png"]
    assert [line for line in done.err.splitlines() if "width=65" in line and "try 64" in line]
    assert done.err.splitlines()[-1] == "diffuse: 1 job of the sweep failed, as said above"
    folders = {path.parent.name for path in done.paths}
    assert {path.name for path in (tmp_path / "out").iterdir()} == folders | {"multirun.yaml", "sweep.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_refused_sweep_leaves_what_was_there(tmp_path: Path) -> None:
    kept = tmp_path / "out" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    done = diffuse("-m", *QUICK, "output.dir=out/new/one", "seed=1,2", "width=65", cwd=tmp_path)
    assert done.status == 2 and done.err.count("try 64") == 1
    assert sorted(tmp_path.rglob("*")) == [kept.parent, kept]


def test_a_name_too_long_is_cut(tmp_path: Path) -> None:
    done = diffuse(*SMOKE, "tracking=none", "output.dir=.", "output.name=" + "ß" * 300, cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.paths[0].name == "ß" * 100 + ".png" and (tmp_path / done.paths[0]).is_file()


# --- checkpoints


def replace(path: Path, content: bytes | dict[str, Any]) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def setting(component: str, name: str, value: Any) -> Callable[[Path], None]:
    """Breaks a checkpoint by one setting of a component's configuration."""

    def damage(folder: Path) -> None:
        path = folder / component / "config.json"
        replace(path, {**json.loads(path.read_text()), name: value})

    return damage


def weights(component: str, damage: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: damage(folder / component / WEIGHTS[component])


def tensors(change: Callable[[dict[str, torch.Tensor], str], Any]) -> Callable[[Path], None]:
    """Rewrites a file of weights with a `change` to its tensors, which is told the first key of a matrix or kernel."""

    def damage(path: Path) -> None:
        found = load_file(path)
        change(found, min(key for key, value in found.items() if value.ndim > 1))
        path.unlink()
        save_file(found, path)

    return damage


EVIL = b"\x80\x02cposix\nsystem\nU\x04true\x85R."  # as a pickle runs a command
DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (lambda path: replace(path, path.read_bytes()[:-1000]), ("cut short", "download it again")),
    "truncated in the header": (lambda path: replace(path, path.read_bytes()[:99]), ("safetensors", "download it")),
    "empty": (lambda path: replace(path, b""), ("is empty", "copy or download it again")),
    "another file": (lambda path: replace(path, b"<html>404</html>" * 9), ("safetensors", "copy or download it again")),
    "integers": (
        tensors(lambda found, key: found.update({key: found[key].to(torch.int32)})),
        ("is stored as I32", "implemented: F64, F32, BF16, F16", "use a checkpoint that is not quantized"),
    ),
    "wrong shape": (
        tensors(lambda found, key: found.update({key: found[key][1:].clone()})),
        ("has the shape", "config.json asks for", "different models"),
    ),
    "missing key": (tensors(lambda found, key: found.pop(key)), ("lacks", "incomplete or of different models")),
    "extra key": (
        tensors(lambda found, key: found.update({"extra.weight": torch.zeros(2)})),
        ("has extra.weight", "no place for", "different models"),
    ),
}
FOLDERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    **{
        f"{component}: {name}": (weights(component, damage), (f"{component}/{WEIGHTS[component]}", *said))
        for name, (damage, said) in DAMAGES.items()
        for component in (WEIGHTS if name == "truncated" else ("vae",))
    },
    "a pickle that runs something": (
        weights("unet", lambda path: replace(path, EVIL) or path.rename(path.with_suffix(".bin"))),
        ("unet/diffusion_pytorch_model.bin: asks for posix.system", "nothing of it was run", "as .safetensors"),
    ),
    "no weights": (weights("unet", Path.unlink), ("unet: has no weights", "diffusion_pytorch_model.safetensors")),
    "no model_index.json": (lambda folder: (folder / "model_index.json").unlink(), ("no model_index.json", "give a")),
    "no component": (lambda folder: shutil.rmtree(folder / "vae"), ("has no folder vae", "incomplete")),
    "no configuration": (lambda folder: (folder / "vae/config.json").unlink(), ("vae/config.json", "again")),
    "a configuration in pieces": (lambda folder: replace(folder / "vae/config.json", b"{"), ("not JSON", "again")),
    "no tokenizer": (lambda folder: (folder / "tokenizer/vocab.json").unlink(), ("tokenizer", "copy or download")),
    "an activation": (setting("unet", "act_fn", "mish"), ("unet/config.json: act_fn='mish'", "only 'silu'")),
    "a block": (setting("unet", "down_block_types", ["AttnDownBlock2D"] * 3), ("AttnDownBlock2D", "use another")),
    "an unknown setting": (setting("vae", "latents_trick", [1.0]), ("latents_trick", "not implemented", "use another")),
    "an activation of the text": (setting("text_encoder", "hidden_act", "relu"), ("hidden_act=relu", "use another")),
    "a number that is text": (setting("unet", "in_channels", "8"), ("in_channels='8'", "an integer")),
    "channels in no groups": (setting("unet", "norm_num_groups", 7), ("unet/config.json", "divisible", "use another")),
    "no heads": (setting("unet", "attention_head_dim", 0), ("unet/config.json", "make no model", "use another")),
    "heads that do not divide": (setting("text_encoder", "num_attention_heads", 5), ("num_attention_heads=5", "again")),
    "text of another width": (setting("unet", "cross_attention_dim", 64), ("64", "text encoder", "different models")),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The shipped checkpoint, of links, so that one file of it can be replaced."""
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint", copy_function=os.symlink))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_damaged_checkpoint(name: str, checkpoint: Path, here: Path) -> None:
    damage, said = FOLDERS[name]
    damage(checkpoint)
    done = diffuse("model=sd21", "hardware=cpu", "prompt=x", *QUICK, f"model.source={checkpoint}", cwd=here)
    assert_refused(done, *said)


def test_the_checkpoint_before_it_is_damaged(checkpoint: Path, tmp_path: Path) -> None:
    options = ("hardware=cpu", "tracking=none", "prompt=x", *QUICK)
    done = diffuse("model=sd21", *options, f"model.source={checkpoint}", cwd=tmp_path)
    assert done.status == 0, done.err
    refused = diffuse("model=sd21", *options, f"model.source={checkpoint / 'unet'}", cwd=tmp_path)
    assert_refused(refused, "is one component", "its parent folder is one")


# --- places that cannot be written, disks that fill up, processes that die


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory, for the time of the block."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"mounting a file system needs more rights: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=LIMIT)


def test_a_folder_without_permission(here: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):
        pytest.skip("the superuser may write everywhere")
    assert_refused(diffuse(*QUICK, f"output.dir={closed}/x", cwd=here), str(closed), "choose another folder")


def test_a_disk_that_is_read_only(here: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        done = diffuse(*QUICK, f"output.dir={disk}/out", cwd=here)
        assert_refused(done, f"output.dir={disk}/out", "Read-only file system", "choose another folder")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot fork here")
    with fork_server(tmp_path_factory.mktemp("log")) as forks:
        yield forks


def assert_no_ruins(folder: Path) -> list[Path]:
    """Every picture in `folder` is whole, down to the digest in its record; what else is there is called unfinished."""
    pictures = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".png":
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            assert read_record(path)["image"]["pixels_sha256"] == pixels_sha256(pixels)
            pictures.append(path)
        elif path.is_file():
            assert path.name.startswith(TEMPORARY) and path.suffix == ".tmp"
    return pictures


def assert_failed(done: Ended, *said: str) -> None:
    """Status 1 and one line, without a traceback."""
    assert done.status == 1, done.err
    assert done.err.startswith("diffuse: ") and done.err.count("\n") == 1, done.err
    for words in said:
        assert words in done.err


def test_a_disk_that_fills_up(server: ForkServer, tmp_path: Path) -> None:
    # The first picture is a PNG of some 12 kB. The limit stands for the disk: it needs no rights.
    options = (*SMOKE, "tracking=none", "output.dir=out")
    done = server.run(*options, cwd=tmp_path, file_bytes=4000)
    assert_failed(done, "a_rocket_on_a_blue_background_0.png could not be saved in out", "make room or set output.dir")
    assert done.out == "" and [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_a_disk_that_is_full(server: ForkServer, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=8k") as disk:
        done = server.run(*SMOKE, "tracking=none", f"output.dir={disk}/out", cwd=tmp_path)
        assert_failed(done, "No space left on device", f"{disk}/out", "make room or set output.dir")
        assert [path.name for path in disk.rglob("*")] == ["out"]
        # Where only the store is on it, the picture is made.
        done = server.run(*SMOKE, f"tracking.uri=sqlite:///{disk}/mlflow.db", "output.dir=here", cwd=tmp_path)
        assert done.status == 0 and len(assert_no_ruins(tmp_path / "here")) == 1
        assert [line for line in done.err.splitlines() if line.startswith("warning: tracking.uri=")]
        assert not (disk / "mlflow.db").exists()


def test_killed_in_the_middle_of_writing_a_picture(server: ForkServer, tmp_path: Path) -> None:
    options = (*SMOKE, "tracking=none", "output.dir=out")
    done = server.run(*options, cwd=tmp_path, file_bytes=4000, die_when_full=True)
    assert done.status < 0 and done.out == ""
    assert assert_no_ruins(tmp_path / "out") == []
    (unfinished,) = (tmp_path / "out").iterdir()
    assert unfinished.stat().st_size == 4000  # it did die in the middle


def runs(store: Path) -> list[str]:
    """The status of each run, from a store that SQLite finds in order."""
    with closing(sqlite3.connect(store)) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        return [status for (status,) in database.execute("select status from runs order by start_time")]


def test_kill_9(server: ForkServer, tmp_path: Path) -> None:
    options = (*SMOKE, "tracking.uri=sqlite:///store/mlflow.db", "output.dir=out", "num_images=2")
    store, out = tmp_path / "store" / "mlflow.db", tmp_path / "out"

    # While the journal is made.
    done = server.run(*options, "output.dir=elsewhere", cwd=tmp_path, kill_at=8)
    assert done.status == -9 and "store/mlflow-pending/.new-" in done.touched[-1]
    assert not store.exists()

    # A run that goes through tells which moments there are.
    whole = server.run(*options, cwd=tmp_path)
    first = next(number for number, touch in enumerate(whole.touched) if touch == "os.mkdir out")
    assert (whole.status, whole.err.count("\n")) == (0, 1), whole.err
    assert runs(store) == ["FINISHED"] and len(whole.touched) > first + 12
    for moment in range(first, len(whole.touched), 5):
        before = len(assert_no_ruins(out))
        done = server.run(*options, cwd=tmp_path, kill_at=moment)
        assert done.status == -9, (moment, done)
        after = assert_no_ruins(out)
        # What was told to be there is there; the last may have been saved and not told.
        assert len(done.out.splitlines()) <= len(after) - before <= 2
        assert all((tmp_path / line).is_file() for line in done.out.splitlines())
        runs(store)

    last = server.run(*options, cwd=tmp_path)
    assert (last.status, last.err.count("\n")) == (0, 1), last.err
    assert runs(store)[-1] == "FINISHED"
    assert set(runs(store)) <= {"FINISHED", "KILLED"}
