"""The films and captions that the tiny video checkpoint learns."""

from __future__ import annotations

import math
import random

import pytest
import torch

from diffuse.tiny import data, video_data
from diffuse.tiny.video_data import COLOURS, FRAMES, MOTIONS, OBJECTS, SIDE


def test_there_are_enough_objects_colours_and_motions_and_each_object_is_one_character() -> None:
    assert len(set(OBJECTS)) == len(OBJECTS) >= 60 and len(COLOURS) >= 8 and len(MOTIONS) >= 6
    assert all(len(data.character(video_data._UNICODE.get(name, name))) == 1 for name in OBJECTS)
    assert set(COLOURS) <= set(data.COLOURS)


def test_five_triples_of_each_object_are_held_out() -> None:
    hidden, everything = video_data.held_out(), video_data.triples()
    assert len(hidden) == 5 * len(OBJECTS) and hidden < set(everything) and len(everything) == len(set(everything))
    assert {motion for _, motion, _ in hidden} == set(range(len(MOTIONS)))


def test_captions_are_of_their_triple() -> None:
    rng = random.Random(0)
    triple = (OBJECTS.index("owl"), MOTIONS.index("spinning"), COLOURS.index("orange"))
    captions = {video_data.caption(triple, rng) for _ in range(600)}
    assert {"", "spinning", "an owl spinning on an orange background"} <= captions
    assert not [text for text in captions if "{" in text]


def _square() -> torch.Tensor:
    """A white square of ten pixels in the middle, with a black one in its upper left quarter."""
    glyph = torch.zeros(1, 4, SIDE, SIDE)
    glyph[:, :, 27:37, 27:37] = 255
    glyph[:, :3, 27:32, 27:32] = 0
    return glyph


def _film(motion: str) -> torch.Tensor:
    motions = torch.tensor([MOTIONS.index(motion)])
    film = video_data.films(_square(), motions, torch.tensor([[255.0, 0.0, 0.0]]))
    assert film.shape == (1, 3, FRAMES, SIDE, SIDE) and film.min() >= -1 and film.max() <= 1
    return film[0]


def _middle(frame: torch.Tensor) -> tuple[float, float]:
    """The middle of what is not background, in rows and columns from the middle of the frame."""
    weight = ((frame - torch.tensor([1.0, -1.0, -1.0])[:, None, None]).abs().sum(dim=0) > 0.5).float()
    places = torch.arange(SIDE) - (SIDE - 1) / 2
    return float((weight.sum(1) * places).sum() / weight.sum()), float((weight.sum(0) * places).sum() / weight.sum())


@pytest.mark.parametrize(
    ("motion", "row", "column"),
    [("moving up", -26, 0), ("moving down", 26, 0), ("moving left", 0, -26), ("moving right", 0, 26)],
)
def test_objects_move_the_way_they_are_said_to(motion: str, row: int, column: int) -> None:
    film = _film(motion)
    first, middle, last = (_middle(film[:, frame]) for frame in (0, FRAMES // 2, FRAMES - 1))
    assert last[0] - first[0] == pytest.approx(row, abs=0.6) and last[1] - first[1] == pytest.approx(column, abs=0.6)
    assert middle == pytest.approx((0, 0), abs=0.6)
    corner = film[:, :, 0, 0]
    assert torch.allclose(corner, torch.tensor([1.0, -1.0, -1.0])[:, None].expand_as(corner), atol=1e-5)


def test_growing_objects_grow_and_spinning_ones_turn_clockwise() -> None:
    growing = _film("growing")
    sizes = [int((growing[1, frame] > 0).sum()) for frame in range(FRAMES)]
    assert sizes == sorted(sizes) and sizes[-1] > 4 * sizes[0]
    spinning = _film("spinning")
    quarter = spinning[:, FRAMES // 2]  # the black quarter is now at the upper right
    assert quarter[:, 29, 35].max() < 0 and quarter[:, 29, 29].min() > 0
    assert spinning[:, 0, 29, 29].max() < 0 and spinning[:, -1, 34, 34].max() < 0
    assert float(video_data.placement(MOTIONS.index("spinning"))[-1, 1]) == pytest.approx(math.pi)
