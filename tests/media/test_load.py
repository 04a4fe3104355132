"""Files that diffuse saved are read back; those of other programs are refused."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from saved_images import FORMATS, refuse, save, smooth

from diffuse.media.load import read_record


def test_pictures_without_a_record(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    for suffix in FORMATS:
        picture.save(tmp_path / f"foreign.{suffix}")
        refuse(lambda suffix=suffix: read_record(tmp_path / f"foreign.{suffix}"), "holds no record")
    picture.save(tmp_path / "other.gif")
    (tmp_path / "text.png").write_text("no picture")
    whole = save(smooth(8, 8), tmp_path).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:20])
    for name in ("other.gif", "text.png", "cut.png", "missing.png", "."):
        refuse(lambda name=name: read_record(tmp_path / name), str(tmp_path))
