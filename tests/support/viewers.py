"""How image viewers and AUTOMATIC1111's web UI find the parameters in a picture: through piexif, in their order."""

from __future__ import annotations

import json
import re

import piexif
import piexif.helper
from PIL import Image

# A name, and a value that is JSON-quoted or has no comma, as the web UI takes the last line apart.
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def parameters_of(picture: Image.Image) -> str:
    """PNG's `parameters`, or EXIF's UserComment as piexif reads it, which must have the type UNDEFINED."""
    if "exif" not in picture.info:
        return str(picture.info["parameters"])
    comment = piexif.load(picture.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
    assert isinstance(comment, bytes)
    return str(piexif.helper.UserComment.load(comment))


def webui_parameters(picture: Image.Image) -> dict[str, str]:
    """The pairs of the last line, without quotes, and the texts before it as `Prompt` and `Negative prompt`."""
    *texts, last = parameters_of(picture).strip().split("\n")
    pairs = {name: json.loads(value) if value.startswith('"') else value for name, value in _PAIR.findall(last)}
    negative = [text.removeprefix("Negative prompt:").strip() for text in texts if text.startswith("Negative prompt:")]
    prompt = [text for text in texts if not text.startswith("Negative prompt:")]
    return {**pairs, "Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
