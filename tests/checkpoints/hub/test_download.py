"""Transfers: resumed where they broke, checked, and removed where they are damaged."""

from __future__ import annotations

import hashlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import command
import pytest
from hub_files import NAME, PLAIN, SMALL, download, files_in, locate, message, weights
from hub_server import HubServer
from huggingface_hub import constants

from diffuse.errors import CheckpointError


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
    repository.files[UNET], repository.held = weights(1, 6_000_000), 2_000_000
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    words = ("download", "model=tiny", f"model.source={NAME}", "--yes")
    process = command.start(*words, cwd=tmp_path, env=environment)
    begun = partial(tmp_path / "hub", UNET, repository.files)
    command.until(lambda: begun.is_file() and begun.stat().st_size > 1_000_000, process)
    process.send_signal(ending)
    done = command.finished(process)
    kept = begun.stat().st_size
    assert 1_000_000 < kept < 6_000_000
    if ending == signal.SIGINT:
        assert (done.status, done.out) == (130, "") and done.err.splitlines()[-1] == "diffuse: interrupted"

    server.log.clear()
    repository.held = None
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


def test_a_full_disk_is_noticed_before_anything_is_fetched(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    text = message(lambda: locate(NAME, components=("vae",)))
    assert "has 10 bytes free" in text and "HF_HOME" in text
    assert not any(path.endswith(".safetensors") for path in server.fetched())


@pytest.mark.parametrize(
    ("unlisted", "size"),
    [
        (
            (
                "size",
                "blobId",
                "lfs",
            ),
            "an unknown size",
        ),  # as a plain mirror lists files: their names alone
        (
            (
                "size",
                "lfs",
            ),
            "an unknown size",
        ),
        (
            (
                "size",
                "blobId",
            ),
            "at least ",
        ),
        (("size",), "at least "),
        (
            (
                "blobId",
                "lfs",
            ),
            "",
        ),
        (("blobId",), ""),
    ],
    ids=str,
)
def test_a_hub_that_lists_less(unlisted: tuple[str, ...], size: str, server: HubServer, capsys: Any) -> None:
    """What is not listed is unknown, and nothing is removed for it."""
    server.repositories[NAME].unlisted = set(unlisted)
    found = download(NAME, yes=True)
    files = files_in(found.folder)
    assert files and all(server.repositories[NAME].files[path] == content for path, content in files.items())
    said = capsys.readouterr().err
    assert size in said if size else "unknown" not in said and "at least" not in said, said
    server.log.clear()
    assert files_in(download(NAME, yes=True).folder) == files  # every file is checked, and none removed
    assert files_in(locate(NAME).folder) == files


def test_a_size_of_zero_is_known(server: HubServer) -> None:
    server.repositories[NAME].unlisted = {"blobId", "lfs"}
    found = download(NAME, yes=True)
    config = found.folder / "unet" / "config.json"
    config.resolve().write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"unet/config\.json: is not what the hub lists"):
        download(NAME, yes=True)
