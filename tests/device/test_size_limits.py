"""The largest pictures and films of a profile: what is refused, with which advice, and what it is shrunk to."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from diffuse.config.groups import load_group
from diffuse.device.size_limits import SizeLimits
from diffuse.errors import ConfigError
from diffuse.schema import GenerationRequest, MemoryProfileConfig, SizeFit

PICTURE = GenerationRequest(
    prompt="x", negative_prompt=None, seed=0, num_images=1, width=64, height=64, num_inference_steps=1, guidance_scale=1
)
SMALL = MemoryProfileConfig(name="small", max_side=768, max_film_size=[640, 480], max_frames=33)


def film(width: int, height: int, frames: int, fit: SizeFit = SizeFit.refuse) -> GenerationRequest:
    return replace(PICTURE, width=width, height=height, num_frames=frames, fit=fit)


def limits(profile: MemoryProfileConfig = SMALL, multiple: int = 32) -> SizeLimits:
    return SizeLimits(profile, multiple, 8)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ((640, 480, 33), (640, 480, 33)),
        ((480, 640, 33), (480, 640, 33)),  # either way round
        ((768, 512, 121), (640, 416, 33)),
        ((512, 768, 9), (416, 640, 9)),
        ((512, 512, 9), (480, 480, 9)),
        ((1920, 1088, 121), (640, 352, 33)),
        ((64, 640, 34), (64, 640, 33)),
        ((6400, 32, 9), (640, 32, 9)),  # no side falls to nothing
    ],
)
def test_the_largest_film_keeps_its_proportions(asked: tuple[int, int, int], found: tuple[int, int, int]) -> None:
    largest = limits().largest(film(*asked))
    assert (largest.width, largest.height, largest.num_frames) == found
    assert limits().holds(largest) and limits().holds(film(*asked)) == (asked == found)


@pytest.mark.parametrize("name", ["high", "medium", "low", "very_low", "cpu_only"])
@pytest.mark.parametrize("multiple", [32, 64])
def test_what_fits_a_shipped_profile_is_allowed(name: str, multiple: int) -> None:
    shipped = limits(load_group("memory_profile")[name], multiple)
    largest = shipped.largest(film(3840, 2176, 257))
    assert shipped.holds(largest) and largest.num_frames is not None and largest.num_frames % 8 == 1
    assert largest.width % multiple == largest.height % multiple == 0
    assert abs(largest.width / largest.height - 3840 / 2176) < 0.5
    larger = replace(largest, width=largest.width + multiple, height=largest.height + multiple)
    assert not shipped.holds(larger)


def test_a_film_that_is_too_large_is_refused_with_what_fits() -> None:
    with pytest.raises(ConfigError) as caught:
        limits().check(film(768, 512, 121))
    assert str(caught.value) == (
        "768 x 512, 121 frames is more than memory_profile=small is meant for, 640 x 480 and 33 frames; the largest "
        "that fits is width=640 height=416 num_frames=33; give that, or fit=shrink; or choose a larger profile, or set "
        "memory_profile.max_film_size=null and memory_profile.max_frames=null"
    )
    with pytest.raises(ConfigError, match=re.escape("the largest that fits is num_frames=33; give that")):
        limits().check(film(640, 480, 41))
    with pytest.raises(ConfigError, match="nothing fits that this model makes, in multiples of 32"):
        limits(replace(SMALL, max_film_size=[16, 16])).check(film(64, 64, 9))


def test_the_largest_side() -> None:
    """Of a picture, and of a film where the profile has no size for films."""
    SizeLimits(SMALL, 8).check(replace(PICTURE, width=768))
    SizeLimits(replace(SMALL, max_side=None), 8).check(replace(PICTURE, width=9999))
    with pytest.raises(ConfigError, match=r"small is meant for, 768 a side; .*fits is height=768; .*max_side="):
        SizeLimits(SMALL, 8).check(replace(PICTURE, height=776))
    old = replace(SMALL, max_film_size=None, max_frames=None)
    limits(old).check(film(768, 768, 999))
    with pytest.raises(ConfigError, match=r"768 a side; .*set memory_profile.max_side=null$"):
        limits(old).check(film(800, 64, 9))


def test_shrinking_says_what_was_asked_for() -> None:
    request, shrunk = limits().fit(film(768, 512, 121, SizeFit.shrink))
    assert (request.width, request.height, request.num_frames) == (640, 416, 33) and shrunk is not None
    assert shrunk.as_record() == {"width": 768, "height": 512, "num_frames": 121}
    assert shrunk.line() == (
        "fit=shrink: 640 x 416, 33 frames, for memory_profile=small; 768 x 512, 121 frames was asked for"
    )
    for kept in (film(768, 512, 121), film(64, 64, 9, SizeFit.shrink)):
        assert limits().fit(kept) == (kept, None)
