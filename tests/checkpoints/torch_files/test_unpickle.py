"""A pickle is read as data: nothing in it is run, and what asks for memory gets none."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import pytest
import torch_archives
from checkpoint_files import message
from processes import LIMIT, launch

from diffuse.checkpoints.torch_files import unpickle
from diffuse.checkpoints.torch_files.torch_file import open_weights_file
from diffuse.checkpoints.torch_files.unpickle import Global, Product, read_pickle


def test_plain_values_are_those_of_pickle() -> None:
    value = {
        "numbers": [0, -1, 300, 70_000, 1 << 40, -(1 << 100), 1.5, True, False, None],
        "texts": ["", "ü", "x" * 300, b"bytes", b"y" * 300],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "twice": [[1]] * 2,
        "ordered": OrderedDict(a=1, b={2: 3}),
    }
    for protocol in range(2, 6):
        found = read_pickle(pickle.dumps(value, protocol), lambda what: what != "os.system", "FILE")
        if protocol == 2:  # bytes are made by a function there
            found["texts"][3:] = value["texts"][3:]  # type: ignore[index]
        assert found == value
        assert found["twice"][0] is found["twice"][1]


def test_what_would_be_made_is_noted() -> None:
    found = read_pickle(pickle.dumps([set("a"), complex(1, 2), int], 2), lambda what: True, "FILE")
    assert isinstance(found[0], Product) and found[0].what == "__builtin__.set" and found[0].arguments == (["a"],)
    assert isinstance(found[1], Product) and found[1].arguments == (1.0, 2.0)
    assert found[2] == Global("__builtin__.long")


def test_what_runs_something_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in torch_archives.calling_pickles():
        file = torch_archives.with_pickle(tmp_path, content)
        assert f"asks for {name}, which no weights need" in message(lambda file=file: open_weights_file(file, "FILE"))
        assert message(lambda content=content: read_pickle(content, lambda what: False, "FILE")).startswith("FILE: ")
    assert not (tmp_path / torch_archives.MARK).exists()
    pickle.loads(content_of_system())
    assert (tmp_path / torch_archives.MARK).exists()  # so it would have been


def content_of_system() -> bytes:
    return next(content for name, content in torch_archives.calling_pickles() if name == "posix.system")


def test_damaged_pickles_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracemalloc.start()
    said = {}
    for what, content in torch_archives.DAMAGED_PICKLES.items():
        file = torch_archives.with_pickle(tmp_path, content)
        said[what] = message(lambda file=file: open_weights_file(file, "FILE"))
        assert said[what].startswith("FILE: ")
    assert "its pickle is damaged" in said["a reference to a text"]
    for what in ("a long key", "a long number as the key of a dict"):
        assert said[what] == "FILE: its pickle has a longer name in it than any model; it is refused"
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    monkeypatch.setattr(unpickle, "_MOST_OPCODES", 1000)
    text = message(lambda: read_pickle(b"\x80\x02" + b"]" * 2000 + b".", lambda what: True, "FILE"))
    assert text == "FILE: its pickle has more parts than any model; it is refused"
    monkeypatch.setattr(unpickle, "_MOST_BYTES", 50)
    text = message(lambda: read_pickle(b"\x80\x02" + b"ctorch\nSize\n" * 9 + b".", lambda what: True, "FILE"))
    assert text == "FILE: its pickle has more names than any model; it is refused"


def test_pickles_that_would_end_the_process_or_never_end(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from diffuse.errors import CheckpointError\n"
        "from diffuse.checkpoints.torch_files.torch_file import open_weights_file\n"
        "for file in sys.argv[1:]:\n"
        "    try:\n"
        "        open_weights_file(Path(file), 'FILE')\n"
        "    except CheckpointError as error:\n"
        "        print(error, flush=True)\n"
    )
    good = hostile(tmp_path, "good", torch_archives.on_storage(b"\x8c\x010"))
    assert len(open_weights_file(good, "FILE").tensors) == 1
    contents = torch_archives.ENDLESS_PICKLES
    files = [hostile(tmp_path, str(place), content) for place, (content, _) in enumerate(contents.values())]
    process = launch([sys.executable, "-c", code, *files], stdout=subprocess.PIPE)
    said = process.communicate(timeout=LIMIT)[0].decode().splitlines()
    assert process.returncode == 0
    for line, (_, expected) in zip(said, contents.values(), strict=True):
        assert line.startswith("FILE: ") and expected in line


def hostile(folder: Path, name: str, content: bytes) -> Path:
    return torch_archives.with_pickle(folder, content, f"{name}.pt")
