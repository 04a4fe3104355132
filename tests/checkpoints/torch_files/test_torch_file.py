"""Files of PyTorch hold the tensors that were saved, as `torch.load(weights_only=True)` finds them too."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_archives
from checkpoint_files import message
from safetensors.torch import save_file
from torch import Tensor

from diffuse.checkpoints.torch_files import torch_file
from diffuse.checkpoints.torch_files.torch_file import open_weights_file


def assert_holds(file: Path, expected: dict[str, Tensor]) -> None:
    found = open_weights_file(file, "FILE")
    assert set(found.tensors) == set(expected)
    assert {key: entry.shape for key, entry in found.tensors.items()} == {
        k: tuple(v.shape) for k, v in expected.items()
    }
    tensors = found.read({key: tensor.dtype for key, tensor in expected.items()}, torch.device("cpu"))
    for key, tensor in expected.items():
        assert torch.equal(tensors[key], tensor) and tensors[key].is_contiguous(), key


@pytest.mark.parametrize(
    "options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}], ids=["zip", "4", "legacy"]
)
def test_tensors_are_those_that_were_saved(options: dict[str, Any], tmp_path: Path) -> None:
    expected = torch_archives.state_dict()
    file = tmp_path / "x.ckpt"
    torch.save(expected, file, **options)
    assert_holds(file, expected)
    if "pickle_protocol" not in options:  # of which it knows 2 alone
        assert_holds(file, torch.load(file, weights_only=True))
    trained = {
        "state_dict": OrderedDict(expected),
        "epoch": 3,
        "callbacks": {int: {"best": torch.tensor(1.0), "seen": {1, 2}}},
        "optimizer_states": [{"state": {0: {"mean": torch.ones(3)}}}],
        "hyper_parameters": torch_archives.Calls(set, [1]),
    }
    torch.save(trained, file, **options)
    assert_holds(file, expected)
    torch.save(expected | {"optimizer_states": trained["optimizer_states"], "epoch": 3}, file, **options)
    assert_holds(file, expected)


def test_a_large_tensor_is_mapped(tmp_path: Path) -> None:
    """Both ways of writing; in the old one numbers lie where no processor likes them, and are copied."""
    torch.save({"a": torch.randn(300, 300)}, tmp_path / "x.pt")
    found = open_weights_file(tmp_path / "x.pt", "FILE")
    (tensor,) = found.read({"a": torch.float32}, torch.device("cpu")).values()
    assert tensor.data_ptr() % 4096 == found.tensors["a"].start % 4096


def test_safetensors_of_another_name_are_read(tmp_path: Path) -> None:
    expected = {"a": torch.randn(3, 4)}
    save_file(expected, tmp_path / "x.ckpt")
    assert_holds(tmp_path / "x.ckpt", expected)


def test_scripts_are_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = torch_archives.scripts(tmp_path)
    expected = torch.load(files["state_dict"])
    assert_holds(files["traced"], expected)
    assert_holds(files["scripted"], expected)
    for name in ("frozen", "writes"):
        assert "without names of weights" in message(lambda name=name: open_weights_file(files[name], "FILE"))
    assert not (tmp_path / torch_archives.MARK).exists()
    torch.jit.load(str(files["writes"]))
    assert (tmp_path / torch_archives.MARK).exists()  # so it would have been


def test_hostile_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = torch_archives.scripts(tmp_path)["traced"]
    for name, content in list(torch_archives.calling_pickles())[:4]:
        hostile = torch_archives.rewrite(
            file, tmp_path / "x.pt", lambda record, data, content=content: content if "/data.pkl" in record else data
        )
        assert f"asks for {name}" in message(lambda hostile=hostile: open_weights_file(hostile, "FILE"))
    node = b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01}U\x04selfh\x01sb."
    endless = torch_archives.rewrite(
        file, tmp_path / "x.pt", lambda record, data: node if "/data.pkl" in record else data
    )
    assert "more modules than any model" in message(lambda: open_weights_file(endless, "FILE"))
    monkeypatch.setattr(torch_file, "_MOST_NAMED", 100)
    assert "longer names of weights" in message(lambda: open_weights_file(endless, "FILE"))
    monkeypatch.undo()
    long = torch_archives.rewrite(
        file,
        tmp_path / "x.pt",
        lambda record, data: node.replace(b"\x04self", b"\xc8" + b"x" * 200) if "/data.pkl" in record else data,
    )
    assert "longer names of weights" in message(lambda: open_weights_file(long, "FILE"))


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"

    def said(content: Any) -> str:
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        return message(lambda: open_weights_file(file, "FILE"))

    assert said(b"") == "FILE: the file is empty; copy or download it again"
    assert "it may be a text" in said(b"a text that is named as a file of weights")
    assert "Git LFS pointer" in said(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is a pickle that PyTorch did not write" in said(b"\x80\x02}.")
    assert "asks for posix.system" in said(b"\x80\x02cposix\nsystem\nU\x01x\x85R.")
    assert "holds no weights" in said({"epoch": 3})
    assert "holds no weights by name" in said([torch.ones(3)])
    one = torch.ones(3)
    for beside, found in (
        ({"state_dict": {"a": one}, "ema": {"a": one}}, "ema.a"),
        ({"state_dict": {"a": one, "n": {"b": one}}}, "state_dict.n.b"),
        ({"state_dict": {"a": one}, "model_state_dict": {"b": one}}, "model_state_dict.b"),
        ({"a": one, "n": [one, one]}, "n.0"),
        ({"a": one, "n": {"b": (1, {"c": one})}}, "n.b.1.c"),
        ({"a": one, 0: one}, "0"),
    ):
        assert f"has the tensor {found} beside the weights of one model" in said(beside)
    assert "asks for torch.nn.modules.linear.Linear" in said(torch.nn.Linear(2, 2))
    torch.save({"a": torch.ones(300)}, file, _use_new_zipfile_serialization=False)
    assert "is cut short" in said(file.read_bytes()[:-100])
    torch.save({"a": torch.ones(300)}, file)
    other_order = torch_archives.rewrite(
        file, tmp_path / "y.ckpt", lambda record, data: b"big" if record.endswith("/byteorder") else data
    )
    assert "the other order of bytes" in message(lambda: open_weights_file(other_order, "FILE"))
    lacking = torch_archives.rewrite(
        file, tmp_path / "y.ckpt", lambda record, data: None if "/data/" in record else data
    )
    assert "says of a what cannot be" in message(lambda: open_weights_file(lacking, "FILE"))
    assert "missing" in message(lambda: open_weights_file(tmp_path / "none.pt", "FILE"))
    assert "folder" in message(lambda: open_weights_file(tmp_path, "FILE"))
