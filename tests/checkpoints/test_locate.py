"""Finding checkpoints: a folder or a repository, stated and agreed to before anything is fetched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_files import INDEX, NAME, download, locate, message, weights
from hub_server import HubServer

import diffuse
from diffuse.errors import ConfigError


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


@pytest.mark.parametrize("source", ["models/mine.safetensors", "mine.ckpt", "M/mine.SAFETENSORS"])
def test_a_file_that_is_not_there_is_not_looked_for_elsewhere(server: HubServer, source: str) -> None:
    assert message(lambda: locate(source)).startswith(f"{source}: there is no such file")
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
    file = tmp_path / "x.safetensors"
    file.write_bytes(weights(1))
    assert locate(str(file)).file == file
    assert "is no file of weights" in message(lambda: locate(str(file.rename(tmp_path / "x.txt"))))


def test_looking_for_a_checkpoint_imports_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    check = (
        "import sys; from diffuse import schema; from diffuse.checkpoints import locate, source; "
        "locate.locate_checkpoints([source.Source(sys.argv[1])], schema.Download.ask); "
        "print({'torch', 'huggingface_hub'} & {*sys.modules})"
    )
    root = Path(diffuse.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", check, str(tmp_path)], cwd=root, text=True) == "set()\n"
