"""Whole pictures, from the command line, against those diffusers makes of the same checkpoint and seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import Variant
from PIL import Image

from diffuse.cli import main as cli

PROMPT = 'A cat, the dog and 3 rockets (oil:1.2), "of" [an] = {inn}! 🐈'
NEGATIVE = "blurry, the and"


def made_by_diffusers(folder: Path, **request: Any) -> np.ndarray:
    defaults = {"prompt": PROMPT, "width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 7.5}
    return oracle.picture(folder, **{**defaults, **request})


def overrides(folder: Path, out: Path, **request: Any) -> list[str]:
    options = {
        "prompt": PROMPT,
        "seed": 0,
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 7.5,
        "model.source": folder,
        "output.dir": out,
        "hardware.threads": 1,
        **request,
    }
    return ["model=sd21", "hardware=cpu", "tracking=none", *(f"{name}={value}" for name, value in options.items())]


@pytest.fixture
def make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., np.ndarray]:
    """What the command saves, uint8 `[N, H, W, 3]`, in the order in which it prints the paths."""

    def run(folder: Path, **request: Any) -> np.ndarray:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main(overrides(folder, tmp_path / "out", **request))
        printed = capsys.readouterr()
        assert exit_.value.code == 0, printed.err
        paths = printed.out.splitlines()
        assert all(Path(path).suffix == ".png" for path in paths)
        return np.stack([np.asarray(Image.open(path)) for path in paths])

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    made: list[tuple[Variant, Path]] = []

    def build(variant: Variant) -> Path:
        for known, folder in made:
            if known == variant:
                return folder
        made.append((variant, oracle.build(tmp_path_factory.mktemp("checkpoint"), variant)))
        return made[-1][1]

    return build


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """One level in 255 apart at most, and pictures of something."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


VARIANTS = {
    "sd21": Variant(),
    "sd15": Variant(
        prediction_type="epsilon",
        linear_projection=False,
        heads=8,
        upcast_attention=False,
        hidden_act="quick_gelu",
        pad_token=oracle.END,
        position_ids=True,
        old_vae_names=True,
        scheduler={"set_alpha_to_one": False, "clip_sample": False},
    ),
    "two levels, tokenizer.json": Variant(
        prediction_type="epsilon",
        channels=(16, 32),
        heads=(2, 8),
        cross=(True, True),
        vae_channels=(8, 16, 16),
        tokenizer="fast",
        text_prefix=False,
        layers_per_block=2,
    ),
    "three levels, deep": Variant(
        channels=(16, 32, 64),
        heads=(4, 2, 8),
        cross=(False, True, True),
        transformer_layers=(1, 2, 3),
        text_layers=4,
        text_width=48,
        tokenizer="fast",
        pad_token=oracle.END,
        eos_token_id=None,
    ),
    "zero terminal SNR, trailing, shards": Variant(
        channels=(16, 32),
        heads=2,
        cross=(True, False),
        vae_channels=(8, 16),
        shard_size="200KB",
        scheduler={"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "sample prediction, clipped, convolutions": Variant(
        prediction_type="sample",
        linear_projection=False,
        channels=(16, 32, 32),
        heads=4,
        cross=(True, True, False),
        layers_per_block=(1, 2, 1),
        vae_channels=(8, 16, 16),
        scheduler={"clip_sample": True, "clip_sample_range": 1.5, "beta_schedule": "linear", "set_alpha_to_one": True},
    ),
    "linspace, cosine": Variant(
        channels=(32, 32),
        heads=(1, 4),
        cross=(True, True),
        vae_channels=(8, 8, 16),
        scheduler={"timestep_spacing": "linspace", "beta_schedule": "squaredcos_cap_v2"},
    ),
}
SIZES = {"sd21": (72, 104), "three levels, deep": (88, 40), "two levels, tokenizer.json": (56, 32)}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, checkpoint: Callable[..., Path], make: Callable[..., np.ndarray]) -> None:
    folder = checkpoint(VARIANTS[name])
    assert_same(make(folder), made_by_diffusers(folder))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_are_not_square_nor_a_power_of_two(
    name: str, checkpoint: Callable[..., Path], make: Callable[..., np.ndarray]
) -> None:
    folder = checkpoint(VARIANTS[name])
    size = {"width": SIZES[name][0], "height": SIZES[name][1]}
    assert_same(make(folder, **size), made_by_diffusers(folder, **size))


REQUESTS = {
    "negative prompt": ({"negative_prompt": NEGATIVE}, {"negative_prompt": NEGATIVE}),
    "no guidance": ({"guidance_scale": 1.0, "negative_prompt": NEGATIVE}, {"guidance_scale": 1.0}),
    "a little guidance": ({"guidance_scale": 1.5}, {"guidance_scale": 1.5}),
    "two pictures": ({"num_images": 2, "seed": 41}, {"seed": [41, 42]}),
    "a large seed": ({"seed": 2**32 - 1}, {"seed": 2**32 - 1}),
    "more steps than divide a thousand": ({"num_inference_steps": 7}, {"num_inference_steps": 7}),
    "one step": ({"num_inference_steps": 1}, {"num_inference_steps": 1}),
    "eta": ({"scheduler.eta": 0.7}, {"eta": 0.7}),
    "eta, two pictures": ({"scheduler.eta": 0.9, "num_images": 2, "seed": 5}, {"eta": 0.9, "seed": [5, 6]}),
    "an empty prompt": ({"prompt": ""}, {"prompt": ""}),
    "a prompt that is cut": ({"prompt": "the cat " * 60}, {"prompt": "the cat " * 60}),
    "sequential guidance": ({"memory_profile.guidance": "sequential"}, {}),
    "another profile": ({"memory_profile": "balanced", "num_images": 2}, {"seed": [0, 1]}),
    "strict": ({"hardware.deterministic": "strict", "num_images": 2}, {"seed": [0, 1]}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(name: str, checkpoint: Callable[..., Path], make: Callable[..., np.ndarray]) -> None:
    folder = checkpoint(VARIANTS["zero terminal SNR, trailing, shards" if "eta" in name else "linspace, cosine"])
    ours, theirs = REQUESTS[name]
    assert_same(make(folder, **ours), made_by_diffusers(folder, **theirs))


def test_the_seed_and_the_prompt_matter(checkpoint: Callable[..., Path], make: Callable[..., np.ndarray]) -> None:
    folder = checkpoint(VARIANTS["linspace, cosine"])
    base = make(folder).astype(int)
    for change in ({"seed": 1}, {"prompt": "something else"}, {"negative_prompt": NEGATIVE}):
        assert np.abs(make(folder, **change) - base).mean() > 2


def test_half_precision_files(checkpoint: Callable[..., Path], make: Callable[..., np.ndarray]) -> None:
    folder = checkpoint(Variant(channels=(16, 32), heads=4, cross=(True, True), variant="fp16"))
    assert_same(make(folder, **{"model.variant": "fp16"}), made_by_diffusers(folder, variant="fp16"))


def test_the_installed_command(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint(VARIANTS["linspace, cosine"])
    command = [sys.executable, "-m", "diffuse", *overrides(folder, tmp_path / "out", num_images=2, seed=8)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pictures = np.stack([np.asarray(Image.open(tmp_path / path)) for path in done.stdout.splitlines()])
    assert_same(pictures, made_by_diffusers(folder, seed=[8, 9]))
