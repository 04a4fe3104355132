"""Fetching from a hub, against a real server on loopback: only what is needed, whole, checked, and explained."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import command
import pytest
from hub_server import MAIN, HubServer, Repository
from huggingface_hub import constants

from diffuse.checkpoints import locate as hub
from diffuse.checkpoints.folder import Checkpoint
from diffuse.checkpoints.hub.repository import Wanted
from diffuse.errors import CheckpointError, ConfigError
from diffuse.schema import Download

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
}


def weights(seed: int, size: int = 1000) -> bytes:
    """Bytes in the safetensors format."""
    header = json.dumps({f"w{seed}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes((seed * 7 + i) % 251 for i in range(size))


SMALL = {
    "model_index.json": json.dumps(INDEX).encode(),
    "unet/config.json": b'{"a": 1}',
    "vae/config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "tokenizer/vocab.json": b'{"a": 0}',
    "tokenizer/merges.txt": b"#version",
    "tokenizer/tokenizer_config.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
}
PLAIN = {
    "unet/diffusion_pytorch_model.safetensors": weights(1),
    "vae/diffusion_pytorch_model.safetensors": weights(2),
    "text_encoder/model.safetensors": weights(3),
}
HALF = {
    "unet/diffusion_pytorch_model.fp16.safetensors": weights(4),
    "text_encoder/model.fp16-00001-of-00002.safetensors": weights(5),
    "text_encoder/model.fp16-00002-of-00002.safetensors": weights(6),
    "text_encoder/model.safetensors.index.fp16.json": json.dumps(
        {"weight_map": {f"w{i}": f"model.fp16-0000{i - 4}-of-00002.safetensors" for i in (5, 6)}}
    ).encode(),
}
NOT_NEEDED = {
    "README.md": b"# model",
    "v2-1.ckpt": b"pickle",
    "v2-1.safetensors": weights(9),
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.bin.index.json": b"{}",
    "unet/diffusion_flax_model.msgpack": b"flax",
    "unet/model.onnx": b"onnx",
    "unet/openvino_model.xml": b"openvino",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": weights(7),
    "feature_extractor/preprocessor_config.json": b"{}",
    "vae_decoder/model.onnx": b"onnx",
}
NAME = "owner/name"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({NAME: Repository({**SMALL, **PLAIN, **HALF, **NOT_NEEDED})}) as running:
        running.is_the_hub(monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield running


def locate(source: str, consent: Download = Download.yes, **about: Any) -> Checkpoint:
    return hub.locate([Wanted(source, **about)], consent)[0]


def download(source: str, yes: bool = False, **about: Any) -> Checkpoint:
    return hub.download([Wanted(source, **about)], Download.yes if yes else Download.ask)[0]


def message(action: Callable[[], Any], kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_needed_is_fetched(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    found = locate(NAME)
    assert files_in(found.folder) == SMALL | PLAIN
    assert server.fetched() == sorted(SMALL | PLAIN)
    assert (found.source, found.revision, found.variant) == (NAME, MAIN, None)
    assert [path.name for path in found.files("unet")] == ["diffusion_pytorch_model.safetensors"]
    out, err = capsys.readouterr()
    assert out == ""
    size = sum(len(data) for data in (SMALL | PLAIN).values()) - len(SMALL["model_index.json"])
    assert err == f"{NAME} is not here yet: fetching {size / 1000:.2f} kB (10 files)\n"


def test_a_variant_and_the_plain_weights_where_it_is_missing(server: HubServer) -> None:
    found = locate(NAME, variant="fp16")
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert files_in(found.folder) == SMALL | HALF | {vae: PLAIN[vae]}
    assert len(found.files("text_encoder")) == 2


def test_only_some_components(server: HubServer) -> None:
    found = locate(NAME, components=("vae", "scheduler"))
    assert sorted(files_in(found.folder)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert files_in(locate(NAME).folder) == SMALL | PLAIN


def test_the_second_time_touches_no_network(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = locate(NAME, variant="fp16")
    server.log.clear()
    assert locate(NAME, variant="fp16") == first
    assert locate(NAME, variant="fp16", revision=MAIN) == first
    assert locate(NAME, variant="fp16", components=("vae",)) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(NAME, variant="fp16") == first
    assert server.log == []


def test_a_missing_file_is_noticed_and_fetched(server: HubServer) -> None:
    found = locate(NAME)
    (found.folder / "tokenizer" / "merges.txt").unlink()
    server.log.clear()
    assert files_in(locate(NAME).folder) == SMALL | PLAIN
    assert server.fetched() == ["tokenizer/merges.txt"]


def test_a_cache_filled_by_another_program_is_used(server: HubServer) -> None:
    found = locate(NAME)
    for listing in found.folder.parents[1].glob("trees/*"):
        listing.unlink()
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    server.log.clear()
    assert locate(NAME) == found
    assert server.log == []
    (found.folder / "tokenizer" / "merges.txt").unlink()
    assert files_in(locate(NAME).folder) == SMALL | PLAIN


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: HubServer) -> None:
    server.repositories[NAME].files[UNET] = weights(1, 3_000_000)
    server.repositories[NAME].cut[UNET] = 1_000_000
    found = locate(NAME)
    assert files_in(found.folder)[UNET] == weights(1, 3_000_000)
    assert asked_for(server, UNET) == [None, "bytes=1000000-"]


UNET = "unet/diffusion_pytorch_model.safetensors"


def asked_for(server: HubServer, path: str) -> list[str | None]:
    """The parts of a file that were asked for."""
    return [part for method, asked, part in server.log if asked.endswith(path) and method == "GET"]


def partial(folder: Path, path: str, files: dict[str, bytes]) -> Path:
    """Where what has arrived of a file is kept."""
    digest = hashlib.sha256(files[path]).hexdigest()
    return folder / f"models--{NAME.replace('/', '--')}" / "blobs" / f"{digest}.diffuse.incomplete"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_interrupted_is_taken_up_where_it_broke_off(
    ending: signal.Signals, server: HubServer, tmp_path: Path
) -> None:
    repository = server.repositories[NAME]
    repository.files[UNET], repository.slow = weights(1, 6_000_000), 0.05
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    words = ("download", "model=tiny", f"model.source={NAME}", "--yes")
    process = command.start(*words, cwd=tmp_path, env=environment)
    begun = partial(tmp_path / "hub", UNET, repository.files)
    end = time.monotonic() + 60
    while not (begun.is_file() and begun.stat().st_size > 1_000_000):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(ending)
    done = command.finished(process)
    kept = begun.stat().st_size
    assert 1_000_000 < kept < 6_000_000
    if ending == signal.SIGINT:
        assert (done.status, done.out) == (130, "") and done.err.splitlines()[-1] == "diffuse: interrupted"

    server.log.clear()
    repository.slow = 0
    again = command.diffuse(*words, cwd=tmp_path)
    assert again.status == 0, again.err
    assert asked_for(server, UNET) == [f"bytes={kept}-"]
    assert f"of which {kept / 10**6:.2f} MB are here from an interrupted run" in again.err
    assert files_in(Path(again.out.strip()))[UNET] == repository.files[UNET]
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("kept", "ranges", "parts"),
    [
        (400, True, ["bytes=400-"]),
        (400, False, ["bytes=400-"]),  # the server sends all of it
        (2000, True, [None]),  # more than there is
        ("all", True, []),
        (0, True, [None]),
    ],
)
def test_what_is_left_of_a_run(kept: Any, ranges: bool, parts: list[str | None], server: HubServer) -> None:
    files, server.repositories[NAME].ranges = server.repositories[NAME].files, ranges
    begun = partial(Path(constants.HF_HUB_CACHE), UNET, files)
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"x" * 2000 if kept == 2000 else files[UNET][: None if kept == "all" else kept])
    assert files_in(locate(NAME).folder) == SMALL | PLAIN
    assert asked_for(server, UNET) == parts
    assert not begun.exists()


def test_what_is_left_of_a_run_and_is_wrong_is_removed(server: HubServer) -> None:
    begun = partial(Path(constants.HF_HUB_CACHE), UNET, server.repositories[NAME].files)
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"x" * 100)
    assert f"{NAME}/{UNET}: is not what the hub lists; it was removed: run the command again" in message(
        lambda: locate(NAME)
    )
    assert not begun.exists()
    assert files_in(locate(NAME).folder) == SMALL | PLAIN


def test_two_runs_at_once_fetch_a_file_once(server: HubServer) -> None:
    repository = server.repositories[NAME]
    repository.files[UNET], repository.slow = weights(1, 1_000_000), 0.05
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: locate(NAME), range(2)))
    assert found[0] == found[1] and files_in(found[0].folder)[UNET] == repository.files[UNET]
    assert asked_for(server, UNET) == [None]


def test_a_server_that_is_busy_for_a_moment(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffuse.checkpoints.hub.download._WAIT", 0.01)
    server.repositories[NAME].busy[UNET] = 3
    assert files_in(locate(NAME).folder) == SMALL | PLAIN
    server.repositories[NAME].files[UNET] = weights(8)
    server.repositories[NAME].commit, server.repositories[NAME].busy[UNET] = "b" * 40, 99
    assert "answered with status 503; try again later" in message(lambda: download(NAME, yes=True))


def test_a_connection_that_brings_nothing_more(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffuse.checkpoints.hub.download._WAIT", 0.01)
    server.repositories[NAME].cut = Always({UNET: 0})
    text = message(lambda: locate(NAME))
    assert "the transfer from" in text and "files that arrived are kept" in text


class Always(dict[str, int]):
    """Cuts the connection every time."""

    def pop(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)


@pytest.mark.parametrize("path", [UNET, "unet/config.json"])
def test_altered_contents_are_noticed_and_not_kept(server: HubServer, path: str) -> None:
    server.repositories[NAME].corrupt.add(path)
    assert f"{NAME}/{path}: is not what the hub lists" in message(lambda: locate(NAME))
    server.repositories[NAME].corrupt.clear()
    assert files_in(locate(NAME).folder) == SMALL | PLAIN


def test_download_checks_what_is_already_here(server: HubServer) -> None:
    found = download(NAME, yes=True)
    path = found.folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.resolve().write_bytes(b"x" + path.read_bytes()[1:])
    assert "is not what the hub lists" in message(lambda: download(NAME, yes=True))
    download(NAME, yes=True)
    assert files_in(found.folder) == SMALL | PLAIN


def test_download_states_the_size_and_needs_consent(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    text = message(lambda: download(NAME, components=("vae",)), ConfigError)
    assert "--yes" in text
    assert not any(path.endswith(".safetensors") for path in server.fetched())
    assert re.match(
        r"owner/name at aaaaaaaaaaaa: 3 files, \d\.\d\d kB; \d\.\d\d kB to fetch into ", capsys.readouterr().err
    )
    download(NAME, components=("vae",), yes=True)
    assert "complete, every file checked" in capsys.readouterr().err
    download(NAME, components=("vae",))  # nothing is left to agree to
    assert "0 bytes to fetch" in capsys.readouterr().err


def test_a_folder_wins_over_a_repository(server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    found = locate(NAME, revision="ignored for folders")
    assert (found.folder, found.revision) == (Path(NAME), None)
    assert download(NAME) == found
    assert "nothing to fetch" in capsys.readouterr().err
    assert server.log == []


@pytest.mark.parametrize("source", ["/no/such", "./no", "~/no-such-folder", "a/b/c", "here/missing", "..\\x"])
def test_a_path_that_does_not_exist(server: HubServer, tmp_path: Path, source: str) -> None:
    (tmp_path / "here").mkdir()
    assert message(lambda: locate(source)).startswith(f"{source}: does not exist")
    assert server.log == []


@pytest.mark.parametrize("source", ["sd21", "", "a b/c", "owner/na--me"])
def test_what_cannot_be_a_name(server: HubServer, source: str) -> None:
    text = message(lambda: locate(source))
    assert "OWNER/NAME" in text
    assert server.log == []


def test_a_single_file(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(weights(1))
    assert "is a file" in message(lambda: locate(str(tmp_path / "x.safetensors")))


def test_a_pinned_revision_and_one_that_is_not_there(server: HubServer) -> None:
    server.repositories[NAME].tags = ("main", "v1")
    assert locate(NAME, revision="v1").revision == MAIN
    assert locate(NAME, revision=MAIN).revision == MAIN
    text = message(lambda: locate(NAME, revision="v2"))
    assert "has no revision v2" in text and "model.revision" in text


def test_a_repository_that_is_not_there(server: HubServer) -> None:
    assert "no such repository" in message(lambda: locate("owner/nothing"))
    server.repositories[NAME].private = True
    assert "or it is private" in message(lambda: locate(NAME))


def test_gated_repositories_are_explained(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories[NAME].gated = True
    text = message(lambda: locate(NAME))
    assert "is gated" in text and f"{server.url}/{NAME}" in text and "HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    assert "your token has no access" in message(lambda: locate(NAME, components=("vae",)))


def test_a_token_that_is_refused(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "does not accept your token" in message(lambda: locate(NAME))


def test_a_hub_that_is_down(server: HubServer) -> None:
    server.repositories[NAME].failing = True
    assert "answered with status 503" in message(lambda: locate(NAME))


def test_no_network(server: HubServer) -> None:
    server.__exit__()
    text = message(lambda: locate(NAME))
    assert f"transfer from {server.url} failed" in text and "check the network" in text


def test_offline_mode_is_respected(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = message(lambda: locate(NAME))
    assert "HF_HUB_OFFLINE is set" in text and "diffuse download" in text
    assert "HF_HUB_OFFLINE is set" in message(lambda: download(NAME, yes=True))
    assert server.log == []


def test_repositories_that_cannot_be_used(server: HubServer) -> None:
    files = {**SMALL, **PLAIN}
    unet = "unet/diffusion_pytorch_model"
    cases: dict[str, tuple[dict[str, bytes], str]] = {
        "pickles": ({**SMALL, f"{unet}.bin": b""}, "pickled weights (diffusion_pytorch_model.bin)"),
        "single": ({"v2.safetensors": b""}, "has no model_index.json"),
        "partial": ({k: v for k, v in files.items() if not k.startswith("vae/")}, "has no folder vae"),
        "half": ({**SMALL, f"{unet}.fp16.safetensors": b""}, "set model.variant=fp16"),
    }
    for name, (content, says) in cases.items():
        server.repositories[f"owner/{name}"] = Repository(content)
        assert says in message(lambda name=name: locate(f"owner/{name}"))  # type: ignore[misc]
    assert "no variant bf16" in message(lambda: locate(NAME, variant="bf16"))
    assert not any(path.endswith((".safetensors", ".bin")) for path in server.fetched())


def test_a_full_disk_is_noticed_before_anything_is_fetched(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    text = message(lambda: locate(NAME, components=("vae",)))
    assert "has 10 bytes free" in text and "HF_HOME" in text
    assert not any(path.endswith(".safetensors") for path in server.fetched())


def test_a_terminal_is_asked_and_shown_progress(server: HubServer, tmp_path: Path) -> None:
    path = "unet/diffusion_pytorch_model.safetensors"
    server.repositories[NAME].files[path] = weights(1, 3_000_000)
    server.repositories[NAME].cut[path] = 1_000_000  # lasts a second, so that there is something to show
    code = (
        "from diffuse import schema; from diffuse.checkpoints import locate; "
        "from diffuse.checkpoints.hub import repository; "
        f"wanted = [repository.Wanted({NAME!r}, components=('unet',))]; "
        "print(locate.download(wanted, schema.Download.ask)[0].folder)"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "TERM": "xterm",
        "COLUMNS": "100",
        "PYTHONPATH": str(Path(hub.__file__).parents[2]),
    }
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not data:
            break
        seen += data
        if seen.endswith(b"[y/N] "):
            os.write(ours, b"y\n")
    out = process.communicate(timeout=60)[0]
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    assert files_in(Path(out.decode().strip()))[path] == weights(1, 3_000_000)
    text = seen.decode()
    assert f"{NAME}: fetch 3.00 MB? [y/N]" in text and "/3.0 MB" in text and "complete, every file checked" in text


def test_looking_for_a_checkpoint_imports_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    check = (
        "import sys; from diffuse import schema; from diffuse.checkpoints import locate; "
        "from diffuse.checkpoints.hub import repository; "
        "locate.locate([repository.Wanted(sys.argv[1])], schema.Download.ask); "
        "print({'torch', 'huggingface_hub'} & {*sys.modules})"
    )
    root = Path(hub.__file__).parents[2]
    assert subprocess.check_output([sys.executable, "-c", check, str(tmp_path)], cwd=root, text=True) == "set()\n"
