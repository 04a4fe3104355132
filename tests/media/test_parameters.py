"""The line of parameters, as AUTOMATIC1111's web UI writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import smoke
from PIL import Image
from saved_images import FORMATS, exif, pixels

from diffuse.media.load import read_record
from diffuse.media.parameters import parameters_text
from diffuse.media.pixels import pixels_sha256


def made_record(**changes: Any) -> dict[str, Any]:
    request = {"prompt": "a cat", "negative_prompt": "", "width": 48, "height": 64}
    request |= {"num_inference_steps": 20, "guidance_scale": 7.0} | changes
    return {
        "diffuse": "1.2",
        "request": request,
        "weights": {"source": "owner/some-model", "sha256": "0123456789abcdef"},
        "config": {"scheduler": {"name": "ddim"}, "model": {"name": "sd21"}},
        "image": {"seed": 8},
    }


def settings_line(line: str) -> dict[str, str]:
    """The pairs of AUTOMATIC1111's last line: `Name: value, Name: "quoted, value"`."""
    pairs, decoder = {}, json.JSONDecoder()
    while line:
        name, line = line.split(": ", 1)
        if line.startswith('"'):
            value, end = decoder.raw_decode(line)
            line = line[end:].removeprefix(", ")
        else:
            value, _, line = line.partition(", ")
        assert name not in pairs
        pairs[name] = value
    return pairs


def test_parameters_are_laid_out_as_viewers_know_them() -> None:
    lines = parameters_text(made_record(negative_prompt="a dog"), "DDIM").split("\n")
    assert lines[:2] == ["a cat", "Negative prompt: a dog"]
    assert lines[2].startswith("Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 8, Size: 48x64, Model hash: 0123456789, ")
    assert settings_line(lines[2])["Model"] == "some-model"
    own = made_record() | {"weights": {"source": "/usr/lib/diffuse/tiny/checkpoint", "sha256": "0123456789abcdef"}}
    assert settings_line(parameters_text(own).split("\n")[-1])["Model"] == "tiny"
    without = parameters_text(made_record(), "DDIM").split("\n")
    assert without == [lines[0], lines[2]]
    assert settings_line(parameters_text(made_record(guidance_scale=1.25)).split("\n")[-1])["CFG scale"] == "1.25"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"prompt": "a (cat)"}, "None"),
        ({"negative_prompt": "[x]"}, "None"),
        ({"prompt": "a (cat)", "prompt_syntax": "weighted"}, None),
        ({"prompt": "a (cat)", "prompt_syntax": "plain"}, "None"),
    ],
)
def test_brackets_that_are_no_weights_are_said_to_be_none(changes: dict[str, Any], said: str | None) -> None:
    """As the web UI says it, in which they would be weights otherwise."""
    pairs = settings_line(parameters_text(made_record(**changes)).split("\n")[-1])
    assert pairs.get("Emphasis") == said


@pytest.mark.parametrize("source", ["/models/with, comma", 'say "yes": no', "C:\\models", "line\nbreak", "plain"])
def test_values_that_would_break_the_line_are_quoted(source: str) -> None:
    record = made_record() | {"weights": {"source": source, "sha256": None}}
    lines = parameters_text(record).split("\n")
    pairs = settings_line(lines[-1])
    assert pairs["Model"] == Path(source).name
    assert "Model hash" not in pairs
    assert len(lines) == 2


def test_a_command_writes_every_format(tmp_path: Path) -> None:
    """The same request in each: the exact pixels in PNG, close ones in the others, the same record in all."""
    request = ('prompt=a "red, round" apple: 100%', "negative_prompt=blue", "seed=5")
    paths = {}
    for format in FORMATS:
        done = smoke(*request, "output.dir=out", f"output.format={format}", cwd=tmp_path)
        (paths[format],) = (tmp_path / path for path in done.paths)
    exact = pixels(paths["png"]).astype(int)
    assert exact.shape == (64, 64, 3) and exact.std() > 10
    for format, path in paths.items():
        assert path == tmp_path / "out" / f"a__red__round__apple__100__5.{format}"
        assert np.abs(pixels(path) - exact).mean() < 5
        record = read_record(path)
        assert record["request"]["prompt"] == 'a "red, round" apple: 100%'
        assert record["image"]["pixels_sha256"] == pixels_sha256(exact.astype(np.uint8))
        text = Image.open(path).info["parameters"] if format == "png" else exif(path)[1]
        prompt, negative, line = text.split("\n")
        assert (prompt, negative) == ('a "red, round" apple: 100%', "Negative prompt: blue")
        pairs = settings_line(line)
        assert (pairs["Seed"], pairs["Steps"], pairs["Size"], pairs["Sampler"]) == ("5", "1", "64x64", "DDIM")
        assert pairs["Model hash"] == record["weights"]["sha256"][:10]
