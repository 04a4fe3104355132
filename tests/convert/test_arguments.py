"""The command line of `diffuse convert`."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffuse.convert.arguments import parse_convert_arguments
from diffuse.errors import ConfigError


def test_values(tmp_path: Path) -> None:
    said = parse_convert_arguments(
        ["a.ckpt", str(tmp_path / "b"), "model.unet.source=u.pt", "--precision=float16", "--shard-size", "1.5GB"]
    )
    assert (said.source, said.target, said.single) == ("a.ckpt", tmp_path / "b", False)
    assert said.composed == ["model=auto", "model.source=a.ckpt", "model.unet.source=u.pt"]
    assert (said.precision, said.shard_bytes) == ("F16", 1_500_000_000)
    said = parse_convert_arguments(["a", str(tmp_path / "b.safetensors"), "model=sdxl"])
    assert said.single and said.composed == ["model.source=a", "model=sdxl"] and said.precision is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "diffuse convert SRC DST"),
        ("a", "diffuse convert SRC DST"),
        ("a new extra", "diffuse convert SRC DST"),
        ("a here", "exists already and is not overwritten"),
        ("a none/new", "there is no such folder"),
        ("a new --precison float16", "did you mean --precision?"),
        ("a new --precision half", "should be float32, float16, bfloat16"),
        ("a new --shard-size 5", "such as 5GB or 500MB"),
        ("a new --shard-size 0GB", "such as 5GB or 500MB"),
        ("a new.safetensors --shard-size 5GB", "is one file"),
        ("a new.ckpt", "is no kind of file that is written"),
        ("a new.SAFETENSORS", "is no kind of file that is written"),
        ("a new model.source=b", "SRC says it already"),
        ("a new scheduler.prediction_type=banana", "should be epsilon or v_prediction"),
        ("a new --shard-size " + "9" * 400 + "GB", "such as 5GB or 500MB"),
        ("a new seed=3", "seed=3: changes no file"),
    ],
)
def test_mistakes(words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ConfigError) as caught:
        parse_convert_arguments(words.split())
    assert said in str(caught.value)
