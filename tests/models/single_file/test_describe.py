"""Every key of the full-size checkpoints is accounted for, and what their shapes tell is what was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ldm_files
import pytest
import torch

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.weights import skeleton
from diffuse.errors import CheckpointError
from diffuse.models.single_file.describe import UNKNOWN_PREDICTION, describe_checkpoint, describe_component
from diffuse.models.single_file.published_names import unet_names, vae_names
from diffuse.models.text_encoder.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.models.text_encoder.clip_tokenizer_files import VOCABULARY
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffuse.plan import configurations

PUBLISHED = Path(configurations.__file__).parent / "published"
NETWORKS: dict[str, tuple[type[Any], type[Any]]] = {
    "unet": (UNet2DConditionModel, UNet2DConditionConfig),
    "vae": (AutoencoderKL, AutoencoderKLConfig),
    "text_encoder": (CLIPTextModel, CLIPTextConfig),
    "text_encoder_2": (CLIPTextModelWithProjection, CLIPTextConfig),
}
NAMES = {"unet": unet_names, "vae": vae_names}
# What `config.json` says and no tensor does: the size it was trained at, which is a matter of the family.
UNTOLD = ("sample_size", "force_upcast", "upcast_attention", "eos_token_id", "projection_dim")


# Of stabilityai/stable-diffusion-xl-refiner-1.0, where it differs from the base's U-Net; the others are the base's.
REFINER = {
    "block_out_channels": [384, 768, 1536, 1536],
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}


def published(name: str, component: str) -> dict[str, Any] | None:
    """The settings of a component of a published checkpoint."""
    is_refiner = name == "sdxl_refiner"
    path = PUBLISHED / ("sdxl" if is_refiner else name) / component / "config.json"
    if not path.is_file() or (is_refiner and component == "text_encoder"):
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found | REFINER if is_refiner and component == "unet" else found


def modules(name: str) -> dict[str, tuple[Any, dict[str, torch.Tensor]]]:
    """The architecture of each component of a published checkpoint, and its tensors without storage."""
    result = {}
    for component, (network, config_class) in NETWORKS.items():
        settings = published(name, component)
        if settings is not None:
            config = read_architecture(config_class, settings, name)
            result[component] = config, skeleton(lambda network=network, config=config: network(config)).state_dict()
    return result


def single(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """The shapes in the single file of a published checkpoint."""
    tensors = {component: state for component, (_, state) in modules(name).items()}
    family = {"sd15": "sd1", "sdxl": "sdxl", "sdxl_refiner": "refiner"}.get(name, "sd2")
    monkeypatch.setattr(ldm_files, "config", lambda folder, component: published(name, component))
    monkeypatch.setattr(ldm_files, "component", lambda folder, component: dict(tensors[component]))
    with torch.device("meta"):
        made = ldm_files.tensors_of(PUBLISHED / name, family)
    return {key: tuple(tensor.shape) for key, tensor in made.items()}


@pytest.mark.parametrize("name", ["sd15", "sd2_base", "sd21", "sdxl", "sdxl_refiner"])
def test_published_checkpoints(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = single(name, monkeypatch)
    metadata = {"modelspec.prediction_type": "v"} if name == "sd21" else {}
    found = describe_checkpoint(shapes, metadata, "FILE")

    kind = "StableDiffusionXLPipeline" if "sdxl" in name else "StableDiffusionPipeline"
    assert found.index["_class_name"] == kind
    assert ("requires_aesthetics_score" in found.index) == (name == "sdxl_refiner")
    scheduler = PUBLISHED / name.removesuffix("_refiner") / "scheduler" / "scheduler_config.json"
    prediction = json.loads(scheduler.read_text())["prediction_type"]
    assert found.configs["scheduler"]["prediction_type"] == (UNKNOWN_PREDICTION if name == "sd2_base" else prediction)
    for component, (config, state) in modules(name).items():
        ours = read_architecture(NETWORKS[component][1], found.configs[component], "FILE")
        for field in vars(config):
            if field not in UNTOLD:
                assert per_level(ours, field) == per_level(config, field), (component, field)
        origins = found.origins[component]
        assert {key: origin.shape(shapes[origin.key]) for key, origin in origins.items()} == {
            key: tuple(tensor.shape) for key, tensor in state.items()
        }
        if component in NAMES:  # and the names lead back
            names = NAMES[component](state, "FILE")
            prefix = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}[component]
            assert {key: f"{prefix}{other}" for key, other in names.items()} == {k: o.key for k, o in origins.items()}


def test_components_under_their_published_names() -> None:
    """Alone, and below the names of the modules that they were exported with."""
    for component, (theirs, state) in modules("sdxl").items():
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        for prefix in ("", "wrapper.model."):
            config, origins = describe_component({prefix + key: s for key, s in shapes.items()}, component, "FILE", {})
            assert {key: origin.key for key, origin in origins.items()} == {key: prefix + key for key in shapes}
            ours = read_architecture(NETWORKS[component][1], config, "FILE")
            field = "hidden_act" if component.startswith("text") else "block_out_channels"
            assert getattr(ours, field) == getattr(theirs, field)
        if component in ("unet", "vae"):
            wrong = {"unet": "vae", "vae": "unet"}[component]
            with pytest.raises(CheckpointError, match="another kind"):
                describe_component(shapes, wrong, "FILE", {})
    vae = {key: tuple(tensor.shape) for key, tensor in modules("sdxl")["vae"][1].items()}
    decoder = {key.removeprefix("decoder."): shape for key, shape in vae.items() if key.startswith("decoder.")}
    config, origins = describe_component({f"dec.{key}": shape for key, shape in decoder.items()}, "vae", "FILE", {})
    assert config == {} and set(origins) == {f"decoder.{key}" for key in decoder}
    with pytest.raises(CheckpointError, match="beside its vae"):
        describe_component({f"dec.{key}": shape for key, shape in decoder.items()} | {"other": (1,)}, "vae", "FILE", {})


def per_level(config: Any, field: str) -> Any:
    """A value, for each level where it may be one for all."""
    value = getattr(config, field)
    if isinstance(config, UNet2DConditionConfig) and field in ("attention_head_dim", "transformer_layers_per_block"):
        levels = config.per_level(value)
        # Where a level does not attend, it has no number of heads or layers; the middle has those of the last.
        attends = ["Cross" in kind for kind in config.down_block_types[:-1]] + [True]
        return [each for each, does in zip(levels, attends, strict=True) if does]
    return value


def test_the_prediction_type_is_what_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    xl, second = single("sdxl", monkeypatch), single("sd2_base", monkeypatch)
    velocity = {"modelspec.prediction_type": "v"}
    assert describe_checkpoint(xl, {}, "FILE").configs["scheduler"]["prediction_type"] == "epsilon"
    for shapes, metadata in (
        (xl, velocity),
        (xl | {"v_pred": (0,)}, {}),
        (second, velocity),
        (second, {"modelspec.architecture": "stable-diffusion-v2-768-v"}),
    ):
        found = describe_checkpoint(shapes, metadata, "FILE")
        assert found.configs["scheduler"]["prediction_type"] == "v_prediction" and len(found.notes) == 1
    zero = describe_checkpoint(xl | {"v_pred": (0,), "ztsnr": (0,)}, {}, "FILE").configs["scheduler"]
    assert zero["rescale_betas_zero_snr"] and zero["timestep_spacing"] == "trailing"
    for key in ("edm_mean", "edm_vpred.sigma_max", "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"):
        with pytest.raises(CheckpointError, match="not implemented"):
            describe_checkpoint(xl | {key: (1,)}, {}, "FILE")


def test_what_would_change_the_picture_and_is_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    second, entry = single("sd2_base", monkeypatch), "model.diffusion_model.input_blocks.0.0.weight"
    encoder = "cond_stage_model.model."
    for more, said in (
        ({f"{encoder}transformer.resblocks.0.ls_1.gamma": (1024,)}, r"tensor .*resblocks.0.ls_1.gamma"),
        ({f"{encoder}transformer.resblocks.0.mlp.more.weight": (1,)}, r"tensor .*mlp.more.weight"),
        ({entry: (320, 5, 3, 3)}, "map of its depth"),
        ({"depth_model.model.x": (1,)}, "map of its depth"),
        (
            {f"model.diffusion_model.input_blocks.{'9' * 5000}.0.in_layers.0.weight": (1,)},
            "has the tensor|another kind",
        ),
        ({entry: (320, 8, 3, 3)}, "InstructPix2Pix"),
    ):
        with pytest.raises(CheckpointError, match=said):
            describe_checkpoint(second | more, {}, "FILE")
    latents = {entry: (320, 8, 3, 3), "model.diffusion_model.out.2.weight": (8, 320, 3, 3)}  # more of them, no picture
    assert describe_checkpoint(second | latents, {}, "FILE").configs["unet"]["in_channels"] == 8
    with pytest.raises(CheckpointError, match="prediction_type in its header is sample"):
        describe_checkpoint(second, {"modelspec.prediction_type": "sample"}, "FILE")
    alone = {key.removeprefix(encoder): shape for key, shape in second.items() if key.startswith(encoder)}
    describe_component(alone | {"visual.proj": (1, 1)}, "text_encoder", "FILE", {})
    with pytest.raises(CheckpointError, match=r"has the tensor anything\.at\.all"):
        describe_component(alone | {"anything.at.all": (1,)}, "text_encoder", "FILE", {})


def test_the_words_are_those_of_clip() -> None:
    for name, padding in (("clip", 49407), ("open_clip", 0)):
        tokenizer = CLIPTokenizer.from_folder(VOCABULARY / name)
        (ids,) = tokenizer(["a photo of a cat, in Zürich"]).ids.tolist()
        # As published with CLIP: start, "a photo of a cat ,", the words of "in zürich", end.
        assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 267, 530]
        assert ids[-1] == padding and 49407 in ids and tokenizer.vocab_size == 49408


def test_components_under_the_names_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ComfyUI, both text encoders in a file among them, and OpenCLIP's own below a wrapper's."""
    shapes = single("sdxl", monkeypatch)
    whole = describe_checkpoint(shapes, {}, "FILE")

    def below(prefix: str, new: str) -> dict[str, tuple[int, ...]]:
        return {new + key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}

    first, second = "conditioner.embedders.0.", "conditioner.embedders.1.model."
    encoders = below(first, "clip_l.") | {"clip_l.logit_scale": ()}
    encoders |= {
        f"clip_g.transformer.{key}": tuple(tensor.shape) for key, tensor in modules("sdxl")["text_encoder_2"][1].items()
    }
    files = [
        ("unet", below("model.diffusion_model.", "diffusion_model.")),
        ("vae", below("first_stage_model.", "vae.")),
        ("text_encoder", encoders),
        ("text_encoder_2", encoders),
        ("text_encoder_2", {f"text_encoders.{key}": shape for key, shape in encoders.items()}),
        ("text_encoder_2", below(second, "model.") | {"model.visual.proj": (1280, 1280)}),
    ]
    for component, own in files:
        config, origins = describe_component(own, component, "FILE", {})
        assert config is not None
        assert origins.keys() == whole.origins[component].keys(), component
        for key, origin in origins.items():
            other = whole.origins[component][key]
            assert origin.shape(own[origin.key]) == other.shape(shapes[other.key]), key
        for field in ("block_out_channels", "hidden_size", "hidden_act", "num_hidden_layers", "projection_dim"):
            assert config.get(field) == whole.configs[component].get(field), (component, field)
    for component, own in files[:2]:
        with pytest.raises(CheckpointError, match=rf"has the tensor other beside its {component}"):
            describe_component(own | {"other": (1,)}, component, "FILE", {})
