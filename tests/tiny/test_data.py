"""The pictures and captions that the tiny checkpoint learned from."""

from __future__ import annotations

import random

import numpy as np

from diffuse.tiny import data


def test_each_object_is_one_character() -> None:
    objects = data.objects()
    assert len(set(objects)) == len(objects) == 333
    assert all(len(data.character(name)) == 1 for name in objects)


def test_captions_name_the_object_or_the_colour() -> None:
    rng = random.Random(0)
    captions = [data.caption("owl", "red", rng) for _ in range(1000)]
    assert all("owl" in caption or "red" in caption for caption in captions if caption)
    assert {"", "an owl on a red background", "red, owl"} <= set(captions)
    assert not any(" a owl" in f" {caption}" for caption in captions)


def test_one_colour_of_each_object_is_held_out() -> None:
    pairs = data.held_out(333)
    assert len(pairs) == 333 and pairs == data.held_out(333)
    assert {index for index, _ in pairs} == set(range(333)) and {colour for _, colour in pairs} == set(range(10))


def test_glyphs_lie_over_their_background() -> None:
    glyph = np.zeros((2, 2, 4), np.uint8)
    glyph[0] = 10, 20, 30, 255
    pixels = data.compose(glyph, np.array([200, 100, 0]))
    assert pixels.tolist() == [[[10, 20, 30]] * 2, [[200, 100, 0]] * 2]
    shades = data.shade(np.full((100, 3), 250.0), np.random.default_rng(0))
    assert shades.min() >= 232 and shades.max() == 255 and (shades == shades[:, :1]).all()
