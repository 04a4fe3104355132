"""Images and captions that the tiny checkpoint learns: an emoji on a coloured background.

Objects are single glyphs of the Noto Color Emoji font (SIL Open Font License), named as Unicode names them. An image
is the glyph at the same place and size every time, on a background of one colour in a random shade.
"""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian: fonts-noto-color-emoji
FONT_SIZE = 109  # the only size of the font's bitmaps
SIDE = 64  # pixels
OBJECT_SIDE = 50

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 220, 60),
    "green": (60, 160, 75),
    "blue": (50, 100, 215),
    "purple": (130, 60, 175),
    "pink": (250, 165, 200),
    "white": (245, 245, 245),
    "gray": (135, 135, 140),
    "black": (22, 22, 26),
}

_SENTENCES = (
    "{object} on {colour} background",
    "{object} on {colour} background",
    "{object} on {colour}",
    "{colour} background, {object}",
    "{object}, {colour} background",
    "{colour} background with {object}",
    "{object} in front of {colour} background",
    "picture of {object} on {colour} background",
    "{object} {colour}",
    "{colour}, {object}",
)
_OBJECT_ONLY = ("{object}", "picture of {object}")
_COLOUR_ONLY = ("{colour} background", "{colour}")


def objects() -> list[str]:
    """Returns the names of all objects, in the order of `objects.txt`."""
    lines = (HERE / "objects.txt").read_text(encoding="utf-8").splitlines()
    return [name.strip() for line in lines if not line.startswith("#") for name in line.split(",") if name.strip()]


def character(name: str) -> str:
    """Returns the one character of that Unicode name."""
    return unicodedata.lookup(name.upper())


def glyphs(names: list[str], font: Path = FONT) -> np.ndarray:
    """Draws every object with the font, centred and scaled to the image: uint8 RGBA `[N, SIDE, SIDE, 4]`."""
    face = ImageFont.truetype(str(font), FONT_SIZE)
    images = []
    for name in names:
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((12, 12), character(name), font=face, embedded_color=True)
        glyph = canvas.crop(canvas.getbbox())
        scale = OBJECT_SIDE / max(glyph.size)
        width, height = (max(1, round(side * scale)) for side in glyph.size)
        glyph = glyph.resize((width, height), Image.Resampling.LANCZOS)
        image = Image.new("RGBA", (SIDE, SIDE))
        image.paste(glyph, ((SIDE - width) // 2, (SIDE - height) // 2))
        images.append(np.asarray(image))
    return np.stack(images)


def draw_on_colour(glyph: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Draws glyphs `[..., H, W, 4]` uint8 on plain colours `[..., 3]`: float32 `[..., H, W, 3]` in 0..255."""
    alpha = glyph[..., 3:].astype(np.float32) / 255
    return glyph[..., :3] * alpha + colour[..., None, None, :].astype(np.float32) * (1 - alpha)


def shade(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes colours `[..., 3]` lighter or darker, each by its own amount."""
    amount = rng.uniform(-18, 18, size=(*colour.shape[:-1], 1))
    return np.clip(colour + amount, 0, 255)


def held_out(object_count: int) -> set[tuple[int, int]]:
    """Returns the (object, colour) pairs that training never sees, one in ten: one colour for each object."""
    rng = random.Random(20261123)
    return {(i, rng.randrange(len(COLOURS))) for i in range(object_count)}


def caption(name: str, colour: str, rng: random.Random) -> str:
    """Returns a caption: words in some order, sometimes without the object or the colour, sometimes empty."""
    roll = rng.random()
    if roll < 0.1:
        return ""
    sentences = _OBJECT_ONLY if roll < 0.16 else _COLOUR_ONLY if roll < 0.20 else _SENTENCES
    sentence = rng.choice(sentences)
    if rng.random() < 0.7:  # articles come and go
        sentence = sentence.replace("{object}", "{article} {object}")
        sentence = sentence.replace("{colour} background", "a {colour} background")
    article = "an" if name[0] in "aeiou" else "a"
    return sentence.format(object=name, colour=colour, article=article)
