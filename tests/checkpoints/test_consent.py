"""Nothing is fetched by surprise: `model.download` says whether, a terminal is asked, and all else is refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import SMOKE, Done, diffuse, exit_status
from hub_server import HubServer, Repository
from huggingface_hub import constants

import diffuse as package
from diffuse.errors import CheckpointError, ConfigError

TINY = Path(package.__file__).parent / "tiny" / "checkpoint"
SOURCE = "model.source=a/tiny"
VAE = "model.vae.source=b/vae"
Run = Callable[..., Done]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the tiny checkpoint, and its autoencoder by itself; an empty cache."""
    repositories = {"a/tiny": Repository(files(TINY)), "b/vae": Repository(files(TINY / "vae"))}
    with HubServer(repositories) as running:
        running.is_the_hub(monkeypatch, tmp_path / "cache")
        yield running


@pytest.fixture
def make(tmp_path: Path) -> Run:
    return lambda *words: diffuse(*SMOKE, "tracking=none", "output.dir=out", "prompt=x", *words, cwd=tmp_path)


def refused(done: Done) -> str:
    assert (done.status, done.out) == (2, ""), done.err
    assert done.err.startswith("diffuse: ") and done.err.count("\n") == 1
    return done.err


def nothing_here(folder: Path) -> bool:
    return not any(path.is_file() for path in folder.rglob("*"))


def test_without_a_terminal_it_is_refused_with_the_ways_out(hub: HubServer, make: Run, tmp_path: Path) -> None:
    size = sum(len(data) for path, data in files(TINY).items() if path.endswith((".json", ".txt", ".safetensors")))
    said = refused(make(SOURCE))
    assert f"a/tiny: {size / 10**6:.2f} MB would be fetched" in said and "add model.download=yes" in said
    assert said.endswith("first run: diffuse download model=tiny model.source=a/tiny\n")
    assert "diffuse download model=tiny model.source=a/tiny model.vae.source=b/vae" in refused(make(SOURCE, VAE))
    assert hub.fetched() == [] and nothing_here(tmp_path)
    with pytest.raises(ConfigError, match=r"would be fetched, .*add model\.download=yes"):
        package.txt2img("x", overrides=[SOURCE], progress=False)
    with pytest.raises(ConfigError, match=r"would be fetched, .*add model\.download=yes"):
        package.load_pipeline("tiny", overrides=[SOURCE])
    assert hub.fetched() == [] and nothing_here(tmp_path)


def test_never_asks_the_network_for_nothing(hub: HubServer, make: Run, tmp_path: Path) -> None:
    for words in ((SOURCE,), (VAE,), ("model=auto", SOURCE), ("model=sdxl", "refiner=sdxl")):
        said = refused(make(*words, "model.download=never"))
        assert "model.download=never; set it to yes, or first run: diffuse download model=" in said
    assert hub.log == [] and nothing_here(tmp_path)


def test_yes_fetches_and_what_is_here_needs_no_consent(hub: HubServer, make: Run) -> None:
    done = make(SOURCE, VAE, "model.download=yes")
    assert done.status == 0, done.err
    assert "a/tiny is not here yet: fetching " in done.err and "b/vae is not here yet: fetching " in done.err
    asked = len(hub.log)
    for consent in ("ask", "never", "yes"):
        done = make(SOURCE, VAE, f"model.download={consent}")
        assert done.status == 0 and "fetching" not in done.err
    assert make("model=auto", SOURCE, "model.download=never").status == 2  # its own autoencoder is not here
    assert len(hub.log) == asked


def test_auto_reads_the_small_file_alone(hub: HubServer, make: Run) -> None:
    said = refused(make("model=auto", SOURCE))
    assert "diffuse download model=sd21 model.source=a/tiny" in said
    assert hub.fetched() == ["model_index.json"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "status"), [("yes\n", 0), ("n\n", 2), ("\n", 2), ("", 2)])
def test_a_terminal_is_asked_once_for_all(
    answer: str, status: int, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    out, err = io.StringIO(), Terminal()
    words = (*SMOKE, "tracking=none", "output.dir=out", SOURCE, VAE)
    assert exit_status(*words, cwd=tmp_path, out=out, err=err) == status, err.getvalue()
    assert err.getvalue().startswith("a/tiny, b/vae: fetch ") and err.getvalue().count("[y/N]") == 1
    if status:
        assert "diffuse: nothing was fetched\n" in err.getvalue() and hub.fetched() == []
        assert not (tmp_path / "out").exists()


def test_what_cannot_be_had_is_said_in_one_line(
    hub: HubServer, make: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command, with status 2, whichever source it is."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    local = f"model.source={TINY}"
    gone = refused(make(local, VAE, "model.vae.revision=v9", "model.download=yes"))
    assert "b/vae: has no revision v9; set model.vae.revision to one of its commits" in gone
    assert "no such repository" in refused(make(local, "model.vae.source=b/none", "model.download=yes"))
    weights = "diffusion_pytorch_model.safetensors"
    hub.repositories["b/vae"].corrupt.add(weights)
    wrong = refused_last(make(local, VAE, "model.download=yes"))
    assert f"b/vae/{weights}: is not what the hub lists; it was removed" in wrong
    hub.repositories["b/vae"].corrupt.clear()
    hub.repositories["b/vae"].gated = True
    assert "b/vae: is gated; accept its terms" in refused_last(make(local, VAE, "model.download=yes"))
    assert not (tmp_path / "out").exists()


def test_no_network_and_none_wanted_are_said_in_one_line(
    hub: HubServer, make: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = f"model.source={TINY}"
    hub.__exit__()
    for words in ((), ("model.download=yes",)):
        assert "b/vae: is not here, and the transfer from" in refused(make(local, VAE, *words))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(make(local, VAE, "model.download=yes"))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        package.txt2img("x", overrides=[VAE, "model.download=yes"], progress=False)


def refused_last(done: Done) -> str:
    """The refusal that comes after it was said what is fetched."""
    *before, last = done.err.splitlines()
    assert (done.status, done.out) == (2, "") and last.startswith("diffuse: ")
    assert ["is not here yet: fetching" in line for line in before] == [True]
    return last
