"""Films and captions that the tiny video checkpoint learns: an emoji that moves on a coloured background, with a sound.

Objects are single glyphs as in `data.py`. A film is one object, one motion and one background; its sound
follows the motion alone, see `video_sound.py`.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.tiny import data

FRAMES = 17
FPS = 12
SIDE = data.SIDE

_NAMES = """
rocket, cat face, sunflower, cactus, mushroom, fire, snowman, umbrella, tomato, banana, pineapple,
red apple, watermelon, strawberry, hamburger, doughnut, carrot, egg, birthday cake, wine glass, avocado,
cow, tiger, rabbit, whale, snail, octopus, honeybee, lady beetle, tropical fish, turtle, penguin, koala,
panda face, frog face, fox face, owl, butterfly, crab, flamingo, helicopter, bus, fire engine, taxi,
tractor, bicycle, airplane, alarm clock, key, hammer, books, light bulb, balloon, crown, top hat, guitar,
trumpet, soccer ball, bomb, ghost, skull, robot face, jack-o-lantern, teddy bear
"""
OBJECTS = tuple(name.strip() for name in _NAMES.split(","))
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
MOTIONS = ("moving up", "moving down", "moving left", "moving right", "spinning", "growing")

_UNICODE = {"light bulb": "electric light bulb"}  # where Unicode's name is not what a person would type
_SIZE = 0.7  # of an object that moves, of the size that the image checkpoint draws it at
_REACH = 13.0  # pixels from the middle to where a way begins and ends
_TURN = math.pi  # of a film of spinning, clockwise
_GROWTH = (0.35, 1.0)

_SENTENCES = (
    "{object} {motion} on {colour} background",
    "{object} {motion} on {colour} background",
    "{object} {motion} on {colour} background",
    "{object} {motion} on {colour}",
    "{object} on {colour} background, {motion}",
    "{colour} background, {object} {motion}",
    "{motion}, {object} on {colour} background",
    "film of {object} {motion} on {colour} background",
)
_PARTS = ("{object}", "{object} {motion}", "{object} on {colour} background", "{colour} background", "{motion}")


def glyphs(font: Path = data.FONT) -> Tensor:
    """Draws every object once, in the middle: `[N, 4, SIDE, SIDE]` from 0 to 255, the last channel its opacity."""
    drawn = data.glyphs([_UNICODE.get(name, name) for name in OBJECTS], font)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float()


def palette() -> Tensor:
    """Returns the colours of the backgrounds `[N, 3]` from 0 to 255."""
    return torch.tensor([data.COLOURS[name] for name in COLOURS]).float()


def placement(motion: int, frames: int = FRAMES) -> Tensor:
    """Returns each frame's size of the object, angle in radians, and way right and down in pixels, `[F, 4]`."""
    t = torch.linspace(0, 1, frames)
    rest, way = torch.zeros(frames), (1 - 2 * t) * _REACH
    size = torch.full((frames,), _SIZE)
    return {
        "moving up": torch.stack((size, rest, rest, way), dim=1),
        "moving down": torch.stack((size, rest, rest, -way), dim=1),
        "moving left": torch.stack((size, rest, way, rest), dim=1),
        "moving right": torch.stack((size, rest, -way, rest), dim=1),
        "spinning": torch.stack((size, t * _TURN, rest, rest), dim=1),
        "growing": torch.stack((_GROWTH[0] + t * (_GROWTH[1] - _GROWTH[0]), rest, rest, rest), dim=1),
    }[MOTIONS[motion]]


def films(glyph: Tensor, motions: Tensor, colours: Tensor) -> Tensor:
    """Draws films `[B, 3, F, SIDE, SIDE]` in -1..1 of glyphs `[B, 4, SIDE, SIDE]` on colours `[B, 3]` in 0..255."""
    places = torch.stack([placement(int(motion)) for motion in motions])  # [B, F, 4]
    size, angle, right, down = places.flatten(0, 1).unbind(1)
    cosine, sine, half = angle.cos() / size, angle.sin() / size, SIDE / 2
    # From a place in the frame to one in the glyph: minus the way, turned back, divided by the size.
    x = torch.stack((cosine, sine, -(cosine * right + sine * down) / half), dim=1)
    y = torch.stack((-sine, cosine, -(cosine * down - sine * right) / half), dim=1)
    # Colours are weighted by the opacity, so that none comes in from where there is no object.
    rgba = torch.cat((glyph[:, :3] * glyph[:, 3:] / 255, glyph[:, 3:]), dim=1)
    rgba = rgba[:, None].expand(-1, places.shape[1], -1, -1, -1).flatten(0, 1)
    grid = F.affine_grid(torch.stack((x, y), dim=1), list(rgba.shape), align_corners=False)
    moved = F.grid_sample(rgba, grid, mode="bilinear", align_corners=False)
    frames = moved.unflatten(0, places.shape[:2])  # [B, F, 4, H, W]
    pixels = frames[:, :, :3] + colours[:, None, :, None, None] * (1 - frames[:, :, 3:] / 255)
    return (pixels / 127.5 - 1).clamp(-1, 1).transpose(1, 2)


def triples() -> list[tuple[int, int, int]]:
    """Returns all (object, motion, colour)."""
    return [(i, j, k) for i in range(len(OBJECTS)) for j in range(len(MOTIONS)) for k in range(len(COLOURS))]


def held_out() -> set[tuple[int, int, int]]:
    """Returns the triples that training never sees: five of each object."""
    rng = random.Random(20261129)
    rest = [(j, k) for j in range(len(MOTIONS)) for k in range(len(COLOURS))]
    return {(i, j, k) for i in range(len(OBJECTS)) for j, k in rng.sample(rest, 5)}


def caption(triple: tuple[int, int, int], rng: random.Random) -> str:
    """Returns a caption: words in some order, sometimes without some of them, sometimes empty."""
    roll = rng.random()
    if roll < 0.1:
        return ""
    sentence = rng.choice(_PARTS if roll < 0.2 else _SENTENCES)
    name, motion, colour = OBJECTS[triple[0]], MOTIONS[triple[1]], COLOURS[triple[2]]
    if rng.random() < 0.7:  # articles come and go
        sentence = sentence.replace("{object}", "{article} {object}")
        sentence = sentence.replace("{colour} background", "{colour_article} {colour} background")
    articles = ("an" if word[0] in "aeiou" else "a" for word in (name, colour))
    article, colour_article = articles
    return sentence.format(object=name, motion=motion, colour=colour, article=article, colour_article=colour_article)
