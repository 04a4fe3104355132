"""What holds for every model: published keys, shapes and settings, and half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from diffusers import AutoencoderKL as PeerVAE
from diffusers import UNet2DConditionModel as PeerUNet
from model_peers import MODELS, PUBLISHED, from_file, noise, token_ids
from oracle import Variant
from torch import Tensor
from transformers import CLIPTextConfig as PeerTextConfig
from transformers import CLIPTextModel as PeerText

from diffuse.checkpoints.architecture import read_architecture
from diffuse.errors import CheckpointError


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def build(name: str, **options: Any) -> Path:
        if name not in made:
            made[name] = oracle.build(tmp_path_factory.mktemp("checkpoint"), Variant(**options))
        return made[name]

    return build


@pytest.mark.parametrize(
    "published",
    [
        {"text_prefix": False},
        {"text_prefix": False, "position_ids": True},
        {"position_ids": True},
        {"old_vae_names": True},
        {"shard_size": "300KB"},
        {"variant": "fp16"},
    ],
    ids=str,
)
def test_weights_are_found_under_every_published_name(
    checkpoints: Callable[..., Path], published: dict[str, Any]
) -> None:
    plain, other = checkpoints("plain"), checkpoints(str(published), **published)
    variant = published.get("variant")
    assert (len(list((other / "unet").glob("*.safetensors"))) > 1) == ("shard_size" in published)
    for component in MODELS:
        expected = from_file(component, plain).state_dict()
        found = from_file(component, other, variant).state_dict()
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), (component, key)


@pytest.mark.parametrize("component", MODELS)
def test_bfloat16_is_finite_and_near_to_float32(checkpoints: Callable[..., Path], component: str) -> None:
    inputs: dict[str, Callable[[Any, torch.dtype], Tensor]] = {
        "unet": lambda m, dtype: m(noise(2, 4, 9, 8).to(dtype), torch.tensor(981), noise(2, 77, 32, seed=1).to(dtype)),
        "vae": lambda m, dtype: m.decode(noise(1, 4, 9, 8).to(dtype) * 5),
        "text_encoder": lambda m, dtype: m(token_ids()).last_hidden_state,
    }
    folder = checkpoints("plain")
    expected = inputs[component](from_file(component, folder), torch.float32)
    half = inputs[component](from_file(component, folder, dtype=torch.bfloat16), torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()
    # 8 bits of mantissa, through some thirty layers.
    assert (half.float() - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize(
    ("component", "parameters"), [("unet", 865_910_724), ("vae", 83_653_863), ("text_encoder", 340_387_840)]
)
def test_full_size_modules_have_the_published_keys_and_shapes(component: str, parameters: int) -> None:
    published = PUBLISHED[component]
    model, config, rename = MODELS[component]
    with torch.device("meta"):
        module = model(read_architecture(config, published, component))  # type: ignore[type-var]
        if component == "unet":
            peer = PeerUNet.from_config(published)
        elif component == "vae":
            peer = PeerVAE.from_config(published)
        else:
            peer = PeerText(PeerTextConfig(**published))
    assert sum(p.numel() for p in module.parameters()) == parameters
    expected = {rename(key): tensor.shape for key, tensor in peer.state_dict().items()}
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == expected
    assert all(tensor.is_meta for tensor in module.state_dict().values())


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "down_block_types", ["SimpleCrossAttnDownBlock2D"] * 4),
        ("unet", "up_block_types", ["UpBlock2D"] * 3),
        ("unet", "act_fn", "gelu"),
        ("unet", "addition_embed_type", "text_image"),
        ("unet", "addition_embed_type", "text_time"),  # without its two widths
        ("unet", "class_embed_type", "timestep"),
        ("unet", "attention_head_dim", [5, 10]),
        ("vae", "down_block_types", ["AttnDownEncoderBlock2D"] * 4),
        ("vae", "latents_mean", [0.0, 0.1]),  # of four channels
        ("vae", "latents_trick", [0.0, 0.0, 0.0, 0.1]),
        ("text_encoder", "hidden_act", "gelu_new"),
        ("text_encoder", "model_type", "bert"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(component: str, key: str, value: Any) -> None:
    _, config, _ = MODELS[component]
    with pytest.raises(CheckpointError, match=key):
        read_architecture(config, {**PUBLISHED[component], key: value}, f"{component}/config.json")  # type: ignore[type-var]
