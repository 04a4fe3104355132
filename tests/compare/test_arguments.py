"""Wrong arguments of `diffuse compare` are refused in one line."""

from __future__ import annotations

from pathlib import Path

from compared import refused, sweep
from PIL import Image


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "x").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "bad" / "foreign.png")
    for arguments, said in (
        ((), "names nothing"),
        (("empty",), "no picture or video"),
        (("bad",), "1 without a record"),
        (("foreign.png",), "holds no record"),
        (("nowhere/at/all",), "no such file or folder"),
        (("no.png",), "no such file or folder"),
        (("s", "--x", "seeed"), "did you mean seed?"),
        (("s", "--y", "stepps"), "did you mean num_inference_steps?"),
        (("s", "--z", "guidance_scale"), "does not vary"),
        (("s", "--x", "seed", "--y", "seed"), "one axis"),
        (("s", "--x"), "needs a value"),
        (("s", "--shets"), "no such option"),
        (("s", "--no-sheet"), "did you mean --no-sheets?"),
        (("s", "--reference", "foreign.png"), "not among the cells"),
        (("s", "--reference", "num_inference_steps=5"), "one of 4, 8"),
        (("s", "--reference", "foreign.png", "--reference", "seed=0"), "is one cell"),
    ):
        assert said in refused(*arguments, cwd=tmp_path), arguments
