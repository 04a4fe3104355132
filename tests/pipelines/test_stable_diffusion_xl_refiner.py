"""SDXL's refiner, by itself and as the second stage after SDXL, against diffusers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle_sdxl
import prompt_oracle
import pytest
import torch
from command import Done, diffuse
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from oracle_sdxl import REFINER, Variant, build_refiner
from picture_parity import photograph
from PIL import Image
from prompt_oracle import Chunk

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.config.groups import SHIPPED

BASE = Variant()
PROMPT = "a cat, the dog and 3 rockets"
REQUEST = {"prompt": PROMPT, "num_inference_steps": 5, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle_sdxl.build(tmp_path_factory.mktemp("base"), BASE)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_refiner(tmp_path_factory.mktemp("refiner"))


_loaded: dict[Path, Any] = {}


def theirs(folder: Path, kind: Any) -> Any:
    if folder not in _loaded:
        _loaded[folder] = kind.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
        _loaded[folder].set_progress_bar_config(disable=True)
    return _loaded[folder]


def run(cwd: Path, *groups: str, **request: Any) -> Done:
    options = {**REQUEST, "seed": 0, "output.dir": "out", "hardware.threads": 1, **request}
    return diffuse("hardware=cpu", "tracking=none", *groups, *(f"{k}={v}" for k, v in options.items()), cwd=cwd)


def made(cwd: Path, *groups: str, **request: Any) -> np.ndarray:
    """The pictures that the command saves, uint8 `[N, H, W, 3]`."""
    done = run(cwd, *groups, **request)
    assert done.status == 0, done.err
    return np.stack([np.asarray(Image.open(cwd / path)) for path in done.paths])


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """One level in 255 apart at most, and pictures of something."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def assert_refused(done: Done, said: str) -> None:
    assert done.status == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1


# By itself, from a picture to another


@pytest.mark.parametrize(
    ("ours", "peers"),
    [
        ({}, {}),
        (
            {"aesthetic_score": 9.5, "negative_aesthetic_score": 1},
            {"aesthetic_score": 9.5, "negative_aesthetic_score": 1},
        ),
        (
            {"negative_prompt": "blurry", "original_height": 700, "crop_left": 9},
            {"negative_prompt": "blurry", "original_size": (700, 64), "crops_coords_top_left": (0, 9)},
        ),
        ({"negative_prompt": PROMPT}, {"negative_prompt": PROMPT}),  # which still differs by its score
    ],
    ids=["plain", "scores", "negative prompt and sizes", "one prompt for both"],
)
def test_a_picture_is_refined(ours: dict[str, Any], peers: dict[str, Any], refiner: Path, tmp_path: Path) -> None:
    source = photograph(tmp_path / "source.png")
    if "original_size" in peers:  # a null stands for the crop's negative, which the reference leaves at the corner
        peers = {**peers, "negative_original_size": (700, 64), "negative_crops_coords_top_left": (0, 9)}
    expected = theirs(refiner, StableDiffusionXLImg2ImgPipeline)(
        **REQUEST, image=Image.open(source), strength=0.6, generator=torch.Generator().manual_seed(0), **peers
    ).images
    ours = {"input_image": source, "strength": 0.6, **ours}
    assert_same(
        made(tmp_path, "model=sdxl_refiner", **{"model.source": refiner}, **ours), np.asarray(expected[0])[None]
    )


# Read by chunks and with weights: what is asked for, and the chunks by hand.
READ = {
    "prompt": f"{'the ' * 75} (cat:1.3)",
    "negative_prompt": "[blurry]",
    "long_prompt": "chunk",
    "prompt_syntax": "weighted",
}
POSITIVE: list[Chunk] = [[("the " * 75, 1)], [("cat", 1.3)]]
NEGATIVE: list[Chunk] = [[("blurry", 1 / 1.1)], [("", 1)]]


def test_a_long_weighted_prompt_is_refined_by(refiner: Path, tmp_path: Path) -> None:
    source = photograph(tmp_path / "source.png")
    peer = theirs(refiner, StableDiffusionXLImg2ImgPipeline)
    embeds = prompt_oracle.sdxl_embeds(peer, [POSITIVE], [NEGATIVE])
    expected = peer(
        **{**REQUEST, "prompt": None, **embeds},
        image=Image.open(source),
        strength=0.6,
        generator=torch.Generator().manual_seed(0),
    ).images
    options = {"model.source": refiner, "input_image": source, "strength": 0.6, **READ}
    assert_same(made(tmp_path, "model=sdxl_refiner", **options), np.asarray(expected[0])[None])


def test_a_field_of_the_base_alone_is_refused(refiner: Path, tmp_path: Path) -> None:
    source = photograph(tmp_path / "source.png")
    done = run(tmp_path, "model=sdxl_refiner", "prompt_2=x", **{"model.source": refiner}, input_image=source)
    assert done.status == 2
    assert "prompt_2=x: model=sdxl_refiner knows no prompt_2" in done.err


def test_a_refiner_without_its_text_encoder_and_a_base_in_its_place_are_refused(
    base: Path, refiner: Path, tmp_path: Path
) -> None:
    source = photograph(tmp_path / "source.png")
    done = run(tmp_path, "model=sdxl_refiner", **{"model.source": base}, input_image=source)
    assert done.status == 2
    assert "choose model=sdxl\n" in done.err
    done = run(tmp_path, "model=sdxl", **{"model.source": refiner}, input_image=source)
    assert done.status == 2
    assert "text_encoder" in done.err or "tokenizer" in done.err
    for line in done.err.splitlines():
        assert "Traceback" not in line


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("text_encoder_2", "has no folder text_encoder_2; the checkpoint is incomplete"),
        ("text_encoder_2/config.json", "text_encoder_2/config.json: is missing"),
        ("text_encoder_2/model.safetensors", "text_encoder_2: has no weights"),
        ("tokenizer_2", "neither vocab.json and merges.txt nor tokenizer.json is there"),
    ],
)
def test_a_refiner_without_its_second_encoder_is_refused(
    missing: str, said: str, stages: int, base: Path, refiner: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "refiner"
    shutil.copytree(refiner, folder)
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if stages == 1:
        source = photograph(tmp_path / "source.png")
        done = run(tmp_path, "model=sdxl_refiner", **{"model.source": folder}, input_image=source)
    else:
        done = run(tmp_path, "model=sdxl", "refiner=sdxl", **both(base, folder))
    assert_refused(done, said)
    assert not (tmp_path / "out").exists()


def test_a_refiner_by_itself_needs_a_picture(refiner: Path, tmp_path: Path) -> None:
    assert_refused(run(tmp_path, "model=sdxl_refiner", **{"model.source": refiner}), "add input_image=FILE")


# The last steps after SDXL


def both(base: Path, refiner: Path, **options: Any) -> dict[str, Any]:
    return {"model.source": base, "refiner.source": refiner, "width": 64, "height": 64, **options}


def made_by_both(
    base: Path, refiner: Path, seed: int = 0, end: float = 0.8, sampler: Any = None, **request: Any
) -> np.ndarray:
    """What diffusers makes in two stages, with one generator."""
    first, second = theirs(base, StableDiffusionXLPipeline), theirs(refiner, StableDiffusionXLImg2ImgPipeline)
    kept = first.scheduler, second.scheduler
    if sampler is not None:
        first.scheduler, second.scheduler = (sampler.from_config(scheduler.config) for scheduler in kept)
    request = {**REQUEST, "generator": torch.Generator().manual_seed(seed), **request}
    early = {name: value for name, value in request.items() if "score" not in name}
    late = {name: value for name, value in request.items() if name != "prompt_2"}
    latents = first(**early, width=64, height=64, denoising_end=end, output_type="latent").images
    images = second(**late, image=latents, denoising_start=end).images
    first.scheduler, second.scheduler = kept
    return np.asarray(images[0])[None]


FIELDS = {"prompt_2": "oil", "negative_prompt": "and", "guidance_rescale": 0.5, "aesthetic_score": 8}


@pytest.mark.parametrize(
    ("ours", "peers"),
    [
        ({}, {}),
        ({"denoising_end": 0.35, "seed": 5}, {"end": 0.35, "seed": 5}),
        ({"num_inference_steps": 7, "denoising_end": 0.6}, {"num_inference_steps": 7, "end": 0.6}),
        (FIELDS, FIELDS),
        ({"memory_profile": "balanced"}, {}),
        ({"scheduler": "euler_ancestral"}, {"sampler": EulerAncestralDiscreteScheduler}),
    ],
    ids=["plain", "early", "more steps", "every field", "a profile in which they change places", "ancestral"],
)
def test_two_stages(ours: dict[str, Any], peers: dict[str, Any], base: Path, refiner: Path, tmp_path: Path) -> None:
    found = made(tmp_path, "model=sdxl", "refiner=sdxl", **both(base, refiner), **ours)
    assert_same(found, made_by_both(base, refiner, **peers))


def test_two_stages_read_a_long_weighted_prompt_alike(base: Path, refiner: Path, tmp_path: Path) -> None:
    first, second = theirs(base, StableDiffusionXLPipeline), theirs(refiner, StableDiffusionXLImg2ImgPipeline)
    request = {**REQUEST, "prompt": None, "generator": torch.Generator().manual_seed(0)}
    early = prompt_oracle.sdxl_embeds(first, [POSITIVE] * 2, [NEGATIVE] * 2)
    late = prompt_oracle.sdxl_embeds(second, [POSITIVE], [NEGATIVE])
    latents = first(**request, **early, width=64, height=64, denoising_end=0.8, output_type="latent").images
    expected = second(**request, **late, image=latents, denoising_start=0.8).images
    found = made(tmp_path, "model=sdxl", "refiner=sdxl", **both(base, refiner), **READ)
    assert_same(found, np.asarray(expected[0])[None])


def test_a_batch_is_its_pictures_and_the_record_names_both(
    base: Path, refiner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = both(base, refiner, num_images=3)
    monkeypatch.setattr(CheckpointFolder, "notes", property(lambda self: [f"{self.source}: found"]))
    done = run(tmp_path, "model=sdxl", "refiner=sdxl", "memory_profile.batch_size=2", **options)
    assert done.status == 0, done.err
    assert [done.err.count(f"warning: {each}: found\n") for each in (base, refiner)] == [1, 1]
    record = json.loads(Image.open(tmp_path / done.paths[0]).text["diffuse"])  # type: ignore[attr-defined]
    assert record["weights"]["source"] == str(base)
    assert record["weights"]["refiner"]["source"] == str(refiner)
    assert len({record["weights"]["sha256"], record["weights"]["refiner"]["sha256"]}) == 2
    assert record["request"]["denoising_end"] == record["config"]["denoising_end"] == 0.8
    assert record["config"]["refiner"]["name"] == "sdxl"
    assert (record["request"]["aesthetic_score"], record["request"]["negative_aesthetic_score"]) == (6, 2.5)
    for seed, path in enumerate(done.paths):
        alone = made(tmp_path, "model=sdxl", "refiner=sdxl", **both(base, refiner, seed=seed))
        assert np.abs(alone[0].astype(int) - np.asarray(Image.open(tmp_path / path))).max() <= 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("denoising_end=1", "denoising_end=1.0: should be a number between 0 and 1"),
        ("denoising_end=0.9999", "leaves the refiner none of num_inference_steps=5; lower it"),
        ("denoising_end=0.001", "leaves the model none of num_inference_steps=5; raise it"),
        ("aesthetic_score=11", "aesthetic_score=11.0: should be a number from 0 to 10"),
        ("refiner.source=null", "refiner.source is not set"),
        (f"refiner.source={SHIPPED['tiny_video']}", "no unet: it is of another family; choose a refiner with a unet"),
        ("refiner._target_=os.system", "refiner._target_=os.system: should be a class in diffuse.pipelines"),
        ("refiner=none", "there is no refiner; choose one, such as refiner=sdxl"),
        ("memory_profile.on_device=[unt]", "on_device names unt"),
    ],
)
def test_what_two_stages_cannot_do_is_refused(
    override: str, said: str, base: Path, refiner: Path, tmp_path: Path
) -> None:
    name, value = override.split("=", 1)
    options = both(base, refiner) | {"refiner": "sdxl", "denoising_end": 0.5} | {name: value}
    assert_refused(run(tmp_path, "model=sdxl", **options), said)


def test_two_stages_of_different_latents_and_pictures_to_start_from_are_refused(
    base: Path, refiner: Path, tmp_path: Path
) -> None:
    other = build_refiner(tmp_path / "other", replace(REFINER, vae_channels=(8, 16)))
    groups = ("model=sdxl", "refiner=sdxl")
    assert_refused(run(tmp_path, *groups, **both(base, other)), "the factor of its vae is 2 and should be 8")
    source = photograph(tmp_path / "source.png")
    done = run(tmp_path, *groups, **both(base, refiner), input_image=source)
    assert_refused(done, f"input_image={source}: model=sdxl refiner=sdxl knows no input_image")
    assert not (tmp_path / "out").exists()
