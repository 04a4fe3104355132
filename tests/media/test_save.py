"""Results are saved in a format that can hold them, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import smoke
from saved_images import FORMATS, refuse, save, smooth

from diffuse.media.save import save_media


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_rgb_picture_is_a_mistake_in_the_program(image: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        save(image, tmp_path)


def test_formats_qualities_and_sizes_that_do_not_exist(tmp_path: Path) -> None:
    image = smooth(2, 2)
    refuse(lambda: save(image, tmp_path, format="gif"), "output.format", "png, jpg, webp")
    for quality in (0, 101, True, 1.5):
        refuse(lambda quality=quality: save(image, tmp_path, format="jpg", quality=quality), "output.quality")
    refuse(lambda: save(np.zeros((1, 16384, 3), np.uint8), tmp_path, format="webp"), "16383", "png")
    refuse(lambda: save(np.zeros((65536, 1, 3), np.uint8), tmp_path, format="jpg"), "65535", "png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_several_frames_or_sound_are_refused(format: str, tmp_path: Path) -> None:
    one, several = smooth(4, 4)[None], np.stack([smooth(4, 4)] * 5)
    name = f"output.format={format}"
    refuse(lambda: save_media(several, tmp_path, "x", format=format, record={}), name, "one frame", "5 frames")
    sound = np.zeros((2, 100), np.float32)
    refuse(lambda: save_media(one, tmp_path, "x", format=format, record={}, sound=sound), name, "sound")
    refuse(lambda: save_media(several[:0], tmp_path, "x", format=format, record={}), name, "0 frames")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("output.quality=80",), "output.quality=80: has no effect with output.format=png; jpg or webp has a quality"),
        (("output.quality=100", "output.format=tiff"), "has no effect with output.format=tiff"),
        (("output.quality=80", "output.format=jpg"), ""),
        (("output.quality=95",), ""),
        (("output.format=webp",), ""),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "report.make=false")], ids=["run", "sweep"])
def test_a_quality_without_effect_is_told_once(
    sweep: tuple[str, ...], given: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = smoke(*sweep, *given, cwd=tmp_path)
    assert done.err.count("has no effect") == bool(said) and said in done.err
    assert len(done.paths) == 1
