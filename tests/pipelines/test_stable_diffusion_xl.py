"""SDXL: its models and whole pictures against diffusers' and transformers' own, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_sdxl
import pytest
import torch
from command import diffuse
from diffusers import AutoencoderKL as PeerVAE
from diffusers import UNet2DConditionModel as PeerUNet
from oracle_sdxl import Variant
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig as PeerTextConfig
from transformers import CLIPTextModel as PeerText
from transformers import CLIPTextModelWithProjection as PeerProjected

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.models.text_encoder import clip
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl
from diffuse.pipelines.stable_diffusion_xl import StableDiffusionXL
from diffuse.schema import Device, Dtype, GenerationRequest, HardwareConfig, MemoryProfileConfig

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "sdxl_configs.json").read_text())
MODELS: dict[str, tuple[Any, Any]] = {
    "unet": (unet2d_condition.UNet2DConditionModel, unet2d_condition.UNet2DConditionConfig),
    "vae": (autoencoder_kl.AutoencoderKL, autoencoder_kl.AutoencoderKLConfig),
    "text_encoder": (clip.CLIPTextModel, clip.CLIPTextConfig),
    "text_encoder_2": (clip.CLIPTextModelWithProjection, clip.CLIPTextConfig),
}
REFINER = Variant(  # its U-Net: four levels, five sizes, one text encoder
    channels=(16, 16, 32, 32), heads=(2, 2, 4, 4), cross=(False, True, True, False), layers=2, sizes=5, first=(0, 0)
)
BASE, OTHER = (
    Variant(),
    Variant(
        channels=(16, 32),
        heads=(4, 2),
        cross=(True, True),
        layers=(2, 1),
        vae_channels=(8, 16, 16),
        force_zeros=False,
        scheduler="DDIMScheduler",
        schedule={"clip_sample": False, "set_alpha_to_one": False},
        seed=3,
    ),
)
TURBO = replace(
    OTHER,
    force_zeros=True,
    scheduler="EulerAncestralDiscreteScheduler",
    schedule={"timestep_spacing": "trailing"},
)
DISTILLED = Variant(channels=(16, 32), heads=(2, 4), cross=(False, True), layers=(1, 2), time_cond_proj_dim=6, seed=5)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ours(component: str, peer: Any, settings: dict[str, Any] | None = None) -> Any:
    """Our module with the peer's settings and weights, all of which it must have a place for."""
    model, config = MODELS[component]
    with torch.device("meta"):
        module = model(read_architecture(config, settings or json.loads(peer.to_json_string()), component))
    module.load_state_dict({renamed(component, key): t for key, t in peer.state_dict().items()}, assign=True)
    return module.eval()


def renamed(component: str, key: str) -> str:
    """A published key's name here; only the libraries' versions differ in it, and only for the text encoders."""
    return clip.rename_projected(key) or "" if component.startswith("text") else key


# The models


@pytest.mark.parametrize("variant", [BASE, REFINER, DISTILLED], ids=["base", "refiner", "distilled"])
@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
@torch.inference_mode()
def test_unet_agrees_with_diffusers(variant: Variant, size: tuple[int, int]) -> None:
    peer = oracle_sdxl.unet(variant)
    x, text = noise(2, 4, *size), noise(2, 77, variant.first[0] + variant.second[0], seed=1)
    added = {
        "text_embeds": noise(2, variant.projection, seed=2),
        "time_ids": torch.tensor([[1024, 720, 0, 64, 512, 513], [90, 5, 7, 0, 64, 2048]])[:, : variant.sizes],
    }
    width = variant.time_cond_proj_dim
    scale = {} if width is None else {"timestep_cond": noise(2, width, seed=3)}
    expected = peer(x, torch.tensor(481), text, added_cond_kwargs=added, **scale).sample
    assert expected.std() > 0.3
    model = ours("unet", peer)
    torch.testing.assert_close(model(x, torch.tensor(481), text, **added, **scale), expected, **FLOAT32)
    twice = peer(x[:1].repeat(2, 1, 1, 1), torch.tensor(481), text, added_cond_kwargs=added, **scale).sample
    copied = model(x[:1], torch.tensor(481), text, **added, **scale, copies=2)
    torch.testing.assert_close(copied, twice, **FLOAT32)
    neighbours = torch.cat([x[:1], x[:1].flip(2), x[1:], x[1:].flip(2)])  # two for each text
    each = {name: value.repeat_interleave(2, 0) for name, value in {**added, **scale, "text": text}.items()}
    expected = peer(
        neighbours,
        torch.tensor(481),
        each["text"],
        added_cond_kwargs={name: each[name] for name in added},
        **{name: each[name] for name in scale},
    ).sample
    torch.testing.assert_close(model(neighbours, torch.tensor(481), text, **added, **scale), expected, **FLOAT32)
    expected = expected[::2]
    for name, value in {**added, **scale}.items():  # none of them is passed over
        changed = {**added, **scale, name: value + 1}
        assert (model(x, torch.tensor(481), text, **changed) - expected).abs().max() > 1e-3, name


@pytest.mark.parametrize(("act", "projection"), [("quick_gelu", None), ("gelu", 24)])
@torch.inference_mode()
def test_text_encoders_agree_with_transformers(act: str, projection: int | None) -> None:
    peer = oracle_sdxl.text_encoder((32, 4), act, projection, seed=1)
    end = len(oracle.clip_vocabulary()) - 1
    ids = torch.full((2, 77), end if projection is None else 0)  # padded with the end token, or with "!"
    ids[:, 0], ids[0, 1:6], ids[1, 1:30] = end - 1, torch.arange(5, 10), torch.arange(40, 69)
    ids[0, 6] = ids[1, 30] = end
    expected = peer(ids, output_hidden_states=True)
    name = "text_encoder" if projection is None else "text_encoder_2"
    result = ours(name, peer, peer.config.to_diff_dict())(ids)
    torch.testing.assert_close(result.hidden_states[-2], expected.hidden_states[-2], **FLOAT32)
    pooled = expected.pooler_output if projection is None else expected.text_embeds
    torch.testing.assert_close(result.pooled, pooled, **FLOAT32)


@pytest.mark.parametrize(
    ("component", "parameters"),
    [
        ("unet", 2_567_463_684),
        ("vae", 83_653_863),
        ("text_encoder", 123_060_480),
        ("text_encoder_2", 694_659_840),
    ],
)
def test_full_size_modules_have_the_published_keys_and_shapes(component: str, parameters: int) -> None:
    published = PUBLISHED[component]
    model, config = MODELS[component]
    peers = {"unet": PeerUNet, "vae": PeerVAE, "text_encoder": PeerText, "text_encoder_2": PeerProjected}
    with torch.device("meta"):
        module = model(read_architecture(config, published, component))
        if component.startswith("text"):
            peer = peers[component](PeerTextConfig(**published))
        else:
            peer = peers[component].from_config(published)
    assert sum(p.numel() for p in module.parameters()) == parameters
    expected = {renamed(component, key): tensor.shape for key, tensor in peer.state_dict().items()}
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == expected


# Whole pictures, from the command line

PROMPT, SECOND = "A cat, the dog and 3 rockets! 🐈", "the ocean in a can, oil on canvas"
NEGATIVE = "blurry, the and"
DEFAULTS = {"prompt": PROMPT, "width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    made: list[tuple[Variant, Path]] = []

    def build(variant: Variant) -> Path:
        for known, folder in made:
            if known == variant:
                return folder
        made.append((variant, oracle_sdxl.build(tmp_path_factory.mktemp("checkpoint"), variant)))
        return made[-1][1]

    return build


def overrides(folder: Path, **request: Any) -> list[str]:
    options: dict[str, Any] = {
        **DEFAULTS,
        "seed": 0,
        "model.source": folder,
        "output.dir": "out",
        "hardware.threads": 1,
        **request,
    }
    return [
        f"model={options.pop('model', 'sdxl')}",
        "hardware=cpu",
        "tracking=none",
        *(f"{name}={value}" for name, value in options.items()),
    ]


def made(folder: Path, cwd: Path, **request: Any) -> np.ndarray:
    """What the command saves, uint8 `[N, H, W, 3]`."""
    done = diffuse(*overrides(folder, **request), cwd=cwd)
    assert done.status == 0, done.err
    return np.stack([np.asarray(Image.open(cwd / path)) for path in done.paths])


def made_by_diffusers(folder: Path, **request: Any) -> np.ndarray:
    return oracle_sdxl.picture(folder, **{**DEFAULTS, **request})


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """One level in 255 apart at most, and pictures of something."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


SIZES = {"original_width": 1024, "original_height": 700, "crop_left": 30, "crop_top": 5, "target_width": 300}
REQUESTS: dict[str, tuple[Variant, dict[str, Any], dict[str, Any]]] = {
    "base": (BASE, {}, {}),
    "an absent negative prompt that is no zeros": (OTHER, {}, {}),
    "wide": (BASE, {"width": 104, "height": 56}, {"width": 104, "height": 56}),
    "tall": (OTHER, {"width": 40, "height": 88}, {"width": 40, "height": 88}),
    "negative prompt": (BASE, {"negative_prompt": NEGATIVE}, {"negative_prompt": NEGATIVE}),
    "empty negative prompt": (BASE, {"negative_prompt": ""}, {"negative_prompt": ""}),
    "second prompts": (
        BASE,
        {"prompt_2": SECOND, "negative_prompt": NEGATIVE, "negative_prompt_2": "and, [a] = {b}"},
        {"prompt_2": SECOND, "negative_prompt": NEGATIVE, "negative_prompt_2": "and, [a] = {b}"},
    ),
    "second prompt, zeros": (BASE, {"prompt_2": SECOND}, {"prompt_2": SECOND}),
    "second negative prompt alone": (
        BASE,
        {"negative_prompt_2": NEGATIVE},
        {"negative_prompt": "", "negative_prompt_2": NEGATIVE},
    ),
    "rescaled guidance": (BASE, {"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
    "sizes and crops": (
        BASE,
        {**SIZES, "target_height": 900},
        {"original_size": (700, 1024), "crops_coords_top_left": (5, 30), "target_size": (900, 300)},
    ),
    "a size alone": (BASE, {"original_width": 1024}, {"original_size": (64, 1024)}),
    "no guidance": (BASE, {"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
    "two pictures": (BASE, {"num_images": 2, "seed": 41}, {"seed": [41, 42]}),
    "sequential guidance": (OTHER, {"memory_profile": "unet_gpu", "guidance_rescale": 1}, {"guidance_rescale": 1.0}),
    "distilled": (DISTILLED, {"guidance_scale": 8.0}, {"guidance_scale": 8.0}),
    "distilled, another scale": (DISTILLED, {"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_pictures_agree_with_diffusers(name: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    variant, ours, theirs = REQUESTS[name]
    folder = checkpoint(variant)
    sampler = {"scheduler": "ddim"} if variant is OTHER else {}
    assert_same(made(folder, tmp_path, **{**sampler, **ours}), made_by_diffusers(folder, **theirs))


def test_turbo_is_its_configuration_alone(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Few steps, no guidance and another sampler; published settings switch guidance off by 0."""
    folder = checkpoint(TURBO)
    few = {"num_inference_steps": "null", "guidance_scale": "null", "model": "sdxl_turbo"}
    theirs = made_by_diffusers(folder, num_inference_steps=4, guidance_scale=0.0)
    assert_same(made(folder, tmp_path, **few), theirs)
    zero = {**few, "negative_prompt": NEGATIVE, "guidance_scale": 0}
    assert_same(made(folder, tmp_path, **zero), theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"negative_prompt": ""},  # which is not an absent one
        {"prompt_2": SECOND},
        {"negative_prompt_2": NEGATIVE},
        {"guidance_rescale": 0.7},
        {"crop_top": 500},
    ],
    ids=str,
)
def test_every_field_matters(change: dict[str, Any], checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    base, changed = made(checkpoint(BASE), tmp_path), made(checkpoint(BASE), tmp_path, **change)
    assert np.abs(changed.astype(int) - base).max() > 3


def test_every_field_is_in_the_record(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    asked = {"prompt_2": "a, {b}", "negative_prompt_2": "", "guidance_rescale": 0.5, "original_width": 1000}
    done = diffuse(*overrides(checkpoint(BASE), num_inference_steps=1, **asked), cwd=tmp_path)
    assert done.status == 0, done.err
    record = json.loads(Image.open(tmp_path / done.paths[0]).text["diffuse"])  # type: ignore[attr-defined]
    filled = {"original_height": 64, "crop_left": 0, "crop_top": 0, "target_width": 64, "target_height": 64}
    for part in (record["request"], record["config"]):
        assert {name: part[name] for name in asked} == asked
        assert {name: part[name] for name in filled} == filled
        assert part["negative_prompt"] is None


# The pipeline


def pipeline(folder: Path, dtype: Dtype = Dtype.auto, **profile: Any) -> StableDiffusionXL:
    config = HardwareConfig(name="cpu", device=Device.cpu, dtype=dtype)
    memory = Memory(MemoryProfileConfig(name="test", on_device=["*"], **profile), hardware.detect(config))
    return StableDiffusionXL(CheckpointFolder.open(folder), memory)


REQUEST = GenerationRequest(
    prompt=PROMPT,
    negative_prompt=None,
    seed=0,
    num_images=1,
    width=64,
    height=64,
    num_inference_steps=2,
    guidance_scale=5.0,
)
DDIM = {"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"}


def test_half_precision_leaves_the_sizes_whole_and_the_vae_in_float32(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(BASE)
    half, full = pipeline(folder, Dtype.bfloat16), pipeline(folder)
    assert half.memory.dtype("unet") == torch.bfloat16
    assert half.memory.dtype("vae") == torch.float32  # as the checkpoint's force_upcast asks
    seen: list[dict[str, Tensor]] = []
    with half.memory.use("unet") as unet:
        unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    request = replace(REQUEST, original_width=1083)
    pictures = [pipe(request, pipe.scheduler(DDIM)).frames.astype(int) for pipe in (half, full)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 8
    assert seen[0]["time_ids"].tolist() == [[64, 1083, 0, 0, 64, 64]] * 2
    assert seen[0]["encoder_hidden_states"].dtype == torch.bfloat16


def test_a_vae_that_is_safe_in_half_precision_stays_in_it(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied(checkpoint(BASE), tmp_path)
    edit(folder / "vae" / "config.json", force_upcast=False)
    assert pipeline(folder, Dtype.bfloat16).memory.dtype("vae") == torch.bfloat16


def test_what_was_cut_is_said_once_for_each_text(checkpoint: Callable[..., Path]) -> None:
    pipe = pipeline(checkpoint(BASE))
    long = "cat " * 60
    for change, said in (({}, ["prompt"]), ({"prompt_2": f"the {long}"}, ["prompt", "second prompt"])):
        request = replace(REQUEST, prompt=long, negative_prompt="", num_inference_steps=1, **change)  # type: ignore[arg-type]
        warnings = pipe(request, pipe.scheduler(DDIM)).warnings
        assert [line.partition("the ")[2].partition(" is longer")[0] for line in warnings] == said


# What is refused, in one line and before anything is made


def copied(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        target = to / "copy" / path.relative_to(folder)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path) if path.suffix == ".safetensors" else target.write_bytes(path.read_bytes())
    return to / "copy"


def edit(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("guidance_rescale=1.5", "guidance_rescale=1.5: should be a number from 0 to 1"),
        ("guidance_rescale=nan", "guidance_rescale=nan: should be a number from 0 to 1"),
        ("original_width=0", "original_width=0: should be a whole number of 1 or more"),
        ("crop_top=-1", "crop_top=-1: should be a whole number of 0 or more"),
        ("target_height=tall", "target_height=tall: 'tall' is not a whole number"),
        ("width=60", "width=60: should be a multiple of 8"),
        ("model.request_defaults.promt_2=x", "promt_2"),
    ],
)
def test_wrong_values_are_refused(override: str, said: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    sign = "+" if "request_defaults" in override else ""
    done = diffuse(*overrides(checkpoint(BASE)), f"{sign}{override}", cwd=tmp_path)
    assert done.status == 2
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["prompt_2=x", "negative_prompt_2=x", "original_width=64", "crop_top=3"])
def test_a_family_that_does_not_know_a_field_refuses_it_by_name(field: str, tmp_path: Path) -> None:
    done = diffuse("model=tiny", "tracking=none", "output.dir=out", field, cwd=tmp_path)
    assert done.status == 2
    assert f"{field}: model=tiny knows no {field.partition('=')[0]}" in done.err
    assert not (tmp_path / "out").exists()


def without_projection(folder: Path) -> None:
    path = folder / "text_encoder_2/model.safetensors"
    tensors = load_file(path)
    del tensors["text_projection.weight"]
    save_file(tensors, path)


def test_parts_that_do_not_belong_together_are_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    whole = checkpoint(BASE)
    broken: dict[str, Callable[[Path], None]] = {
        "lacks text_projection.weight": without_projection,
        "added conditioning is 72 wide": lambda f: edit(f / "text_encoder_2/config.json", projection_dim=16),
        "takes neither sizes nor": lambda f: edit(f / "unet/config.json", addition_embed_type=None),
        "attends to text [48] wide": lambda f: edit(f / "text_encoder/config.json", hidden_size=32),
        "text_encoder_2": lambda f: (f / "text_encoder_2/config.json").unlink(),
    }
    for number, (said, spoil) in enumerate(broken.items()):
        folder = copied(whole, tmp_path / str(number))
        spoil(folder)
        done = diffuse(*overrides(folder), cwd=tmp_path)
        assert done.status == 2, said
        assert said in done.err
        assert len(done.err.splitlines()) == 1
    done = diffuse(*overrides(whole), "model=sd21", cwd=tmp_path)
    assert done.status == 2
    assert "choose model=sdxl\n" in done.err
