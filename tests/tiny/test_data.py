"""The images and captions that the tiny checkpoint learns."""

from __future__ import annotations

import random

import numpy as np

from diffuse.tiny import data


def test_each_object_is_one_character_and_has_one_colour_held_out() -> None:
    names = data.objects()
    assert len(set(names)) == len(names) > 50
    assert all(len(data.character(name)) == 1 for name in names)
    held_out = data.held_out(len(names))
    assert sorted(index for index, _ in held_out) == list(range(len(names)))
    assert {colour for _, colour in held_out} <= set(range(len(data.COLOURS)))


def test_captions_are_of_their_object_and_colour() -> None:
    rng = random.Random(0)
    captions = [data.caption("owl", "red", rng) for _ in range(400)]
    assert {"", "red", "owl"} <= set(captions) and any("an owl on a red background" in text for text in captions)
    assert not [text for text in captions if "{" in text]


def test_a_glyph_covers_its_colour_where_it_is_opaque() -> None:
    glyph = np.zeros((2, 2, 4), np.uint8)
    glyph[0] = (9, 8, 7, 255)
    image = data.draw_on_colour(glyph, np.array([100.0, 50.0, 0.0]))
    assert (image[0] == (9, 8, 7)).all() and (image[1] == (100, 50, 0)).all()
    shades = data.shade(np.full((500, 3), 250.0), np.random.default_rng(0))
    assert shades.max() == 255 and shades.min() >= 232 and (np.ptp(shades, axis=1) == 0).all()
