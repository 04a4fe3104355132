"""Each model alone against diffusers' and transformers' own, with the same weights and random inputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL as PeerVAE
from diffusers import UNet2DConditionModel as PeerUNet
from oracle import Variant
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig as PeerTextConfig
from transformers import CLIPTextModel as PeerText

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.weights import load_weights
from diffuse.errors import CheckpointError
from diffuse.layers.attention import Attention
from diffuse.layers.packed import Conv2d, Linear
from diffuse.models.text_encoder import clip
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "sd21_configs.json").read_text())
MODELS = {
    "unet": (unet2d_condition.UNet2DConditionModel, unet2d_condition.UNet2DConditionConfig, unet2d_condition.rename),
    "vae": (autoencoder_kl.AutoencoderKL, autoencoder_kl.AutoencoderKLConfig, autoencoder_kl.rename),
    "text_encoder": (clip.CLIPTextModel, clip.CLIPTextConfig, clip.rename),
}


def ours(component: str, peer: nn.Module) -> Any:
    """Our module with the peer's settings and weights."""
    model, config, rename = MODELS[component]
    settings = json.loads(peer.to_json_string()) if component != "text_encoder" else peer.config.to_diff_dict()
    if component == "text_encoder":
        settings = {**settings, "architectures": [type(peer).__name__]}
    with torch.device("meta"):
        module = model(read_architecture(config, settings, f"{component}/config.json"))  # type: ignore[type-var]
    renamed = {rename(key): tensor for key, tensor in peer.state_dict().items()}
    module.load_state_dict({key: t for key, t in renamed.items() if key is not None}, strict=True, assign=True)
    return module.eval()


def from_file(component: str, folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """Our module as the program loads it."""
    model, config, rename = MODELS[component]
    checkpoint = CheckpointFolder.open(folder, variant=variant)
    settings = read_architecture(config, checkpoint.config(component), component)  # type: ignore[type-var]
    return load_weights(lambda: model(settings), checkpoint, component, device="cpu", dtype=dtype, rename=rename)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_ids(batch: int = 2) -> Tensor:
    """Start token, words, end token, padding."""
    size = len(oracle.clip_vocabulary())
    ids = torch.zeros(batch, 77, dtype=torch.int64)
    for row in range(batch):
        length = 5 + 11 * row
        ids[row, :length] = torch.randint(1, size - 2, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, 0], ids[row, length] = size - 2, size - 1
    return ids


TWO_LEVELS = Variant(channels=(16, 32), heads=8, cross=(True, True), vae_channels=(8, 16))
UNETS = {
    "sd21": Variant(),
    "sd15": Variant(linear_projection=False, heads=8, upcast_attention=False),
    "two levels": TWO_LEVELS,
    "three levels, deep": Variant(
        channels=(16, 32, 32), heads=(2, 4, 8), cross=(False, True, True), transformer_layers=(1, 2, 3)
    ),
    "tuples": Variant(
        channels=(16, 32, 64), heads=(4, 2, 8), cross=(True, False, True), layers_per_block=(1, 3, 2), seed=3
    ),
    "deep, convolutions": replace(TWO_LEVELS, linear_projection=False, transformer_layers=2, layers_per_block=2),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (7, 24)])
def test_unet_agrees_with_diffusers(name: str, size: tuple[int, int]) -> None:
    peer = oracle.unet(UNETS[name])
    x, text = noise(2, 4, *size), noise(2, 77, 32, seed=1)
    expected = peer(x, torch.tensor(481), text).sample
    assert expected.std() > 0.3
    torch.testing.assert_close(ours("unet", peer)(x, torch.tensor(481), text), expected, **FLOAT32)


def test_unet_takes_a_timestep_for_each_picture_and_any_length_of_text() -> None:
    peer = oracle.unet(TWO_LEVELS)
    model = ours("unet", peer)
    x, text, timesteps = noise(3, 4, 8, 8), noise(3, 5, 32, seed=1), torch.tensor([1, 500, 999])
    torch.testing.assert_close(model(x, timesteps, text), peer(x, timesteps, text).sample, **FLOAT32)
    torch.testing.assert_close(model(x, 7.0, text), peer(x, 7.0, text).sample, **FLOAT32)


def test_unet_shares_a_text_among_neighbours() -> None:
    peer = oracle.unet(TWO_LEVELS)
    x, text, timesteps = noise(6, 4, 8, 8), noise(2, 77, 32, seed=1), torch.tensor([1, 500, 999, 2, 3, 4])
    expected = peer(x, timesteps, text.repeat_interleave(3, 0)).sample
    torch.testing.assert_close(ours("unet", peer)(x, timesteps, text), expected, **FLOAT32)


@pytest.mark.parametrize("name", UNETS)
def test_unet_copies_the_pictures_for_each_text(name: str) -> None:
    """What is computed before the text has a say is that of both."""
    peer = oracle.unet(UNETS[name])
    x, text, timesteps = noise(3, 4, 9, 8), noise(2, 77, 32, seed=1), torch.tensor([1, 500, 999])
    expected = peer(torch.cat([x, x]), timesteps.repeat(2), text.repeat_interleave(3, 0)).sample
    torch.testing.assert_close(ours("unet", peer)(x, timesteps, text, copies=2), expected, **FLOAT32)


def test_unet_reads_every_input() -> None:
    model = ours("unet", oracle.unet(TWO_LEVELS))
    x, text = noise(1, 4, 8, 8), noise(1, 77, 32, seed=1)
    base = model(x, torch.tensor(500), text)
    assert (model(x, torch.tensor(400), text) - base).abs().max() > 0.01
    assert (model(x, torch.tensor(500), text.flip(2)) - base).abs().max() > 0.01
    assert (model(x.flip(2), torch.tensor(500), text) - base).abs().max() > 0.01


@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 1)])
def test_timestep_embedding_options(flip: bool, shift: int) -> None:
    peer = PeerUNet(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
        flip_sin_to_cos=flip,
        freq_shift=shift,
        norm_eps=1e-3,
    ).eval()
    oracle.randomise(peer, 0)
    x, text = noise(1, 4, 8, 8), noise(1, 77, 32, seed=1)
    torch.testing.assert_close(ours("unet", peer)(x, 77, text), peer(x, 77, text).sample, **FLOAT32)


VAES = {
    "four levels": Variant(),
    "two levels": Variant(vae_channels=(8, 16)),
    "one level": Variant(vae_channels=(16,)),
}


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("size", [(8, 8), (5, 9)])
def test_vae_agrees_with_diffusers(name: str, size: tuple[int, int]) -> None:
    variant = VAES[name]
    peer = oracle.vae(variant)
    model = ours("vae", peer)
    latents = noise(2, 4, *size) * 5
    expected = peer.decode(latents).sample
    assert expected.std() > 0.2
    torch.testing.assert_close(model.decode(latents), expected, **FLOAT32)
    pixels = noise(2, 3, size[0] * variant.pixels, size[1] * variant.pixels).clamp(-1, 1)
    theirs, mine = peer.encode(pixels).latent_dist, model.encode(pixels)
    torch.testing.assert_close(mine.mode(), theirs.mode(), **FLOAT32)
    torch.testing.assert_close(mine.logvar, theirs.logvar, **FLOAT32)


def test_vae_encodes_pixels_that_latents_do_not_divide() -> None:
    peer = oracle.vae(VAES["four levels"])
    pixels = noise(1, 3, 37, 50).clamp(-1, 1)
    torch.testing.assert_close(ours("vae", peer).encode(pixels).mean, peer.encode(pixels).latent_dist.mean, **FLOAT32)


def test_vae_without_its_optional_parts() -> None:
    peer = PeerVAE(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=2,
        latent_channels=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).eval()
    oracle.randomise(peer, 0)
    model = ours("vae", peer)
    torch.testing.assert_close(model.decode(noise(1, 8, 6, 6)), peer.decode(noise(1, 8, 6, 6)).sample, **FLOAT32)
    pixels = noise(1, 3, 12, 12)
    torch.testing.assert_close(model.encode(pixels).mean, peer.encode(pixels).latent_dist.mean, **FLOAT32)


def test_a_latent_drawn_from_the_encoders_distribution_is_diffusers_own() -> None:
    peer = oracle.vae(VAES["two levels"])
    pixels = noise(1, 3, 16, 16).clamp(-1, 1)
    expected = peer.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(7))
    mine = ours("vae", peer).encode(pixels)
    torch.testing.assert_close(mine.sample([torch.Generator().manual_seed(7)]), expected, **FLOAT32)


def test_a_picture_decoded_in_a_batch_is_the_picture_decoded_alone() -> None:
    model = ours("vae", oracle.vae(VAES["two levels"]))
    latents = noise(3, 4, 8, 8) * 5
    whole = model.decode(latents)
    assert whole.shape == (3, 3, 16, 16)
    for i in range(3):
        assert torch.equal(whole[i : i + 1], model.decode(latents[i : i + 1]))


def test_one_tile_is_the_whole_picture() -> None:
    model = ours("vae", oracle.vae(VAES["two levels"]))
    latents = noise(2, 4, 8, 6) * 5
    assert torch.equal(model.decode_tiled(latents, tile=8, overlap=2), model.decode(latents))


def test_tiles_are_close_to_the_whole_and_leave_no_seams() -> None:
    model = ours("vae", oracle.vae(VAES["two levels"]))
    # Each tile's norms see that tile alone, so a picture with the same statistics everywhere is what can agree.
    latents = noise(1, 4, 48, 40) * 5
    whole, tiled = model.decode(latents), model.decode_tiled(latents, tile=24, overlap=8)
    assert tiled.shape == whole.shape
    difference = (tiled - whole).abs()
    assert difference.mean() < 0.1 * whole.std()
    middle = difference[..., 2:-2, 2:-2]  # no worse where tiles meet than elsewhere
    assert middle.mean(dim=(0, 1, 3)).max() < 4 * middle.mean()
    assert middle.mean(dim=(0, 1, 2)).max() < 4 * middle.mean()


def test_tiling_refuses_an_overlap_of_more_than_half() -> None:
    model = ours("vae", oracle.vae(VAES["two levels"]))
    with pytest.raises(ValueError, match="overlap"):
        model.decode_tiled(noise(1, 4, 8, 8), tile=4, overlap=3)


TEXTS = {
    "gelu": Variant(),
    "quick gelu, own end token": Variant(hidden_act="quick_gelu", eos_token_id=None),
    "deep": Variant(text_layers=5, text_width=48),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("projection", [None, 24])
def test_text_encoder_agrees_with_transformers(name: str, projection: int | None) -> None:
    peer = oracle.text_encoder(TEXTS[name], projection)
    expected = peer(token_ids(), output_hidden_states=True)
    result = ours("text_encoder", peer)(token_ids())
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, **FLOAT32)
    assert len(result.hidden_states) == TEXTS[name].text_layers + 1
    for mine, theirs in zip(result.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, theirs, **FLOAT32)
    pooled = expected.pooler_output if projection is None else expected.text_embeds
    torch.testing.assert_close(result.pooled, pooled, **FLOAT32)


def test_text_encoder_gives_the_states_of_shorter_texts() -> None:
    peer = oracle.text_encoder(Variant())
    ids = token_ids()[:, :20]
    torch.testing.assert_close(ours("text_encoder", peer)(ids)[0], peer(ids).last_hidden_state, **FLOAT32)


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


class _AttentionDtypes(TorchFunctionMode):
    """Notes the precision in which attention is computed; a CPU's kernels hide an overflow that a GPU's show."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen += [tensor.dtype for tensor in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("upcast", "dtype", "computed"),
    [
        (True, torch.float16, torch.float32),
        (False, torch.float16, torch.float16),
        (True, torch.bfloat16, torch.bfloat16),  # has float32's range
    ],
)
def test_upcast_attention_leaves_float16(upcast: bool, dtype: torch.dtype, computed: torch.dtype) -> None:
    layer = Attention(32, heads=2, head_dim=16, upcast=upcast)
    tokens = noise(1, 16, 32)
    expected = layer(tokens)
    with _AttentionDtypes() as dtypes:
        result = layer.to(dtype)(tokens.to(dtype))
    assert dtypes.seen == [computed] * 3
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.02)


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
        ("vae", "latents_mean", [0.0, 0.0, 0.0, 0.1]),
        ("text_encoder", "hidden_act", "gelu_new"),
        ("text_encoder", "model_type", "bert"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(component: str, key: str, value: Any) -> None:
    _, config, _ = MODELS[component]
    with pytest.raises(CheckpointError, match=key):
        read_architecture(config, {**PUBLISHED[component], key: value}, f"{component}/config.json")  # type: ignore[type-var]


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {
    "convolution": (lambda: Conv2d(8, 6, 3, padding=1), noise(1, 8, 5, 7), noise(2, 8, 9, 4)),
    "linear": (lambda: Linear(128, 520), noise(5, 128), noise(2, 3, 128)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_is_packed_once_and_only_outside_of_training(kind: str, dtype: torch.dtype) -> None:
    build, *inputs = LAYERS[kind]
    layer = build().to(dtype)
    x, other = (t.to(dtype) for t in inputs)
    if kind == "convolution":
        x = x.contiguous(memory_format=torch.channels_last)
    trained = layer.weight
    expected = layer(x)
    assert layer.weight is trained  # an optimizer may hold it
    layer.requires_grad_(False)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).stride() == expected.stride()
    packed = layer.weight
    assert packed.is_mkldnn == (dtype != torch.float64 and torch.backends.mkldnn.is_available())
    layer(other)
    assert layer.weight is packed
    assert torch.equal(layer.state_dict()["weight"], trained)
    assert torch.equal(copy.deepcopy(layer).weight, trained)
    layer(x)
    with torch.inference_mode(False):
        layer.to(torch.float16).to(dtype)  # it can still be moved, though it was made in inference mode
    assert torch.equal(layer.weight, trained.to(torch.float16).to(dtype))


@pytest.mark.parametrize("kind", LAYERS)
def test_results_do_not_depend_on_what_a_weight_was_packed_for(kind: str) -> None:
    build, x, other = LAYERS[kind]
    first = build().requires_grad_(False)
    second = copy.deepcopy(first)
    first(other)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_weight_gives_way_to_gradients_and_to_autocast(kind: str) -> None:
    build, x, _ = LAYERS[kind]
    layer = build().requires_grad_(False)
    expected = layer(x)
    with torch.inference_mode(False):
        leaf = x.clone().requires_grad_()
        result = layer(leaf)
        result.sum().backward()
        torch.testing.assert_close(result.detach(), expected.clone(), **FLOAT32)
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0
        layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x.clone()).dtype == torch.bfloat16


def test_without_onednn_a_kernel_lies_channels_last() -> None:
    layer = Conv2d(8, 6, 3, padding=1).double().requires_grad_(False)
    layer(noise(1, 8, 5, 7).double())
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_mapped_from_a_file_leave_memory_when_they_are_packed(tmp_path: Path) -> None:
    variant = replace(TWO_LEVELS, channels=(64, 128))
    model = from_file("unet", oracle.build(tmp_path, variant))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists a process's mappings")
    before = maps.read_text().count(str(tmp_path))
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model(noise(1, 4, 8, 8), 500, noise(1, 77, 32, seed=1))
    assert before > 4
    assert maps.read_text().count(str(tmp_path)) == 1  # of everything else
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
