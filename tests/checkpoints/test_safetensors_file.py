"""Damaged files are named, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import WHOLE, checkpoint, fill, message, tensors

DAMAGED = {
    "empty": (b"", "is empty"),
    "truncated": (None, "cut short"),
    "garbage": (b"\x10\0\0\0\0\0\0\0 garbage, garbage", "not a readable safetensors file"),
    "garbage header length": (b"\xff" * 64, "not a readable safetensors file"),
    "a few bytes": (b"abc", "not a readable safetensors file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    content, says = DAMAGED[kind]
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    path = tmp_path / "unet" / WHOLE
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    text = message(lambda: fill(found))
    assert text.startswith(str(path)) and says in text


@pytest.mark.parametrize("behind", [b"\0", b"\n", b"garbage " * 100, b"PK\x03\x04", None])
def test_bytes_behind_the_weights_are_called_so(tmp_path: Path, behind: bytes | None) -> None:
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    path = tmp_path / "unet" / WHOLE
    added = path.read_bytes() if behind is None else behind  # two files joined
    path.write_bytes(path.read_bytes() + added)
    text = message(lambda: fill(found))
    assert text.startswith(f"{path}: {len(added)} bytes lie behind the weights") and "cut short" not in text
