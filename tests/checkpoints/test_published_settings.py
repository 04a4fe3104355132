"""Settings and tensors of published files that change no picture, and those that would."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import WHOLE, checkpoint, message
from safetensors.torch import save_file

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.weights import check_weights
from diffuse.models.text_encoder import clip
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig
from diffuse.models.vae.autoencoder_kl import AutoencoderKLConfig
from diffuse.schedulers.build import build_sampler

DDIM = {"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"}
TEXT = {"model_type": "clip_text_model", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
TEXT |= {"num_attention_heads": 2, "vocab_size": 20, "projection_dim": 4, "max_position_embeddings": 7}
NOTES: list[dict[str, Any]] = [
    {"_comment": "made by hand"},
    {"//": "made by hand"},
    {"# 1": ["made", "by hand"]},
    {"comment_2": "made by hand"},
    {"Description": "made by hand"},
    {"norm_eps_comment": 1},
    {"$schema": {"a": 1}},
    {"license": "openrail++"},
]


def component(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a component as the program reads them from its folder."""
    file = "scheduler_config.json" if name == "scheduler" else "config.json"
    return checkpoint(folder, {file: settings}, name).config(name)


@pytest.mark.parametrize("note", NOTES, ids=str)
def test_notes_for_people_are_no_settings(note: dict[str, Any], tmp_path: Path) -> None:
    for name, kind in (("unet", UNet2DConditionConfig), ("vae", AutoencoderKLConfig), ("text", clip.CLIPTextConfig)):
        assert read_architecture(kind, component(tmp_path, name, note), name) == kind()
    published = component(tmp_path, "scheduler", {"beta_end": 0.02, **note})
    assert build_sampler(DDIM, published) == build_sampler(DDIM, {"beta_end": 0.02})


@pytest.mark.parametrize("key", ["encoder_hid_dim", "annotation_dim", "notes_width", "authority"])
def test_what_may_be_a_setting_is_still_refused(key: str, tmp_path: Path) -> None:
    settings = component(tmp_path, "unet", {key: 3})
    assert f"{key}=3 is not implemented" in message(lambda: read_architecture(UNet2DConditionConfig, settings, "unet"))


@pytest.mark.parametrize(
    "settings",
    [
        {"tensor_format": "pt"},
        {"tensor_format": "np"},
        {"predict_epsilon": True},
        {"predict_epsilon": False, "prediction_type": "epsilon"},
        {"some_trick": ""},
        {"some_trick": []},
        {"some_trick": {}, "timestep_type": "discrete", "use_flow_sigmas": False},
    ],
    ids=str,
)
def test_settings_of_schedulers_that_ask_for_nothing(settings: dict[str, Any]) -> None:
    assert build_sampler(DDIM, settings) == build_sampler(DDIM, {})


def test_an_old_name_of_another_prediction_is_not_passed_over() -> None:
    text = message(lambda: build_sampler(DDIM, {"predict_epsilon": False}))
    assert "predict_epsilon=False" in text and "scheduler.prediction_type=sample" in text
    chosen = build_sampler({**DDIM, "prediction_type": "sample"}, {"predict_epsilon": False})
    assert chosen.prediction_type == "sample"
    assert "tensor_format=3" in message(lambda: build_sampler(DDIM, {"tensor_format": 3}))


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.1},
        {"act_fn": "swish"},
        {"gradient_checkpointing": True},
        {"only_cross_attention": [False, False, False, False]},
        {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 7000, "power": 0.6667},
        {"update_after_step": 0, "use_ema_warmup": True},
        {"addition_embed_type_num_heads": 64, "num_class_embeds": None},
    ],
    ids=str,
)
def test_settings_of_unets_that_ask_for_nothing(settings: dict[str, Any]) -> None:
    assert read_architecture(UNet2DConditionConfig, settings, "unet") == UNet2DConditionConfig()
    assert not read_architecture(UNet2DConditionConfig, {"use_linear_projection": None}, "").use_linear_projection


@pytest.mark.parametrize(
    "settings",
    [
        {"transformer_layers_per_block": [1, [2, 2], [4, 4], 1]},  # and nothing for the way up
        {"reverse_transformer_layers_per_block": [1, 1]},
        {"reverse_transformer_layers_per_block": [[1, 1], 1, 1, 1]},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"act_fn": "mish"},
        {"only_cross_attention": [False, True, False, False]},
        {"sample_size": "64"},
    ],
    ids=str,
)
def test_settings_of_unets_that_would_change_a_picture(settings: dict[str, Any]) -> None:
    (name,) = settings
    assert name.removeprefix("reverse_") in message(lambda: read_architecture(UNet2DConditionConfig, settings, "unet"))


@pytest.mark.parametrize(
    "settings", [{"act_fn": "swish"}, {"force_upcast": None}, {"latents_mean": None, "latents_std": None}], ids=str
)
def test_settings_of_autoencoders_that_ask_for_nothing(settings: dict[str, Any]) -> None:
    read = read_architecture(AutoencoderKLConfig, settings, "vae")
    assert read == AutoencoderKLConfig() or settings == {"force_upcast": None}
    assert read_architecture(AutoencoderKLConfig, {"sample_size": None}, "vae").sample_size is None
    wrong = {"latents_mean": [0.1, 0.2]}
    assert "latents_mean has 2 entries" in message(lambda: read_architecture(AutoencoderKLConfig, wrong, "vae"))


@pytest.mark.parametrize(
    "settings",
    [
        {"architectures": None},
        {"architectures": ["CLIPTextModelWithProjection"]},
        {"architectures": ["CLIPModel"]},
        {"architectures": []},
        {"return_dict": True, "output_hidden_states": False, "torchscript": False},
        {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "top_k": 50, "length_penalty": 1.0},
        {"attention_dropout": 0.1, "tie_word_embeddings": True, "use_cache": True, "tokenizer_class": None},
        {"pruned_heads": {}, "is_decoder": False, "cross_attention_hidden_size": None},
    ],
    ids=str,
)
def test_settings_of_text_encoders_that_ask_for_nothing(settings: dict[str, Any]) -> None:
    plain = read_architecture(clip.CLIPTextConfig, TEXT, "text_encoder")
    assert read_architecture(clip.CLIPTextConfig, {**TEXT, **settings}, "text_encoder") == plain
    whole = {"model_type": "clip", "text_config": {**TEXT, **settings}, "vision_config": {"hidden_size": 99}}
    whole |= {"projection_dim": 99, "logit_scale_init_value": 2.6592, "text_config_dict": None, "architectures": None}
    assert read_architecture(clip.CLIPTextConfig, whole, "text_encoder") == plain
    other = {**TEXT, "model_type": "t5"}
    assert "model_type='t5'" in message(lambda: read_architecture(clip.CLIPTextConfig, other, "text_encoder"))


ONE = torch.ones(())
EXTRA: dict[str, dict[str, Any]] = {
    "text_projection": {"text_projection.weight": torch.ones(4, 8)},
    "a projection of another width": {"text_projection.weight": torch.ones(9, 9)},
    "logit_scale": {"logit_scale": ONE},
    "a vision half": {"vision_model.post_layernorm.weight": ONE, "visual_projection.weight": ONE},
    "positions": {"text_model.embeddings.position_ids": torch.arange(7)[None]},
    "a vision half's positions": {"vision_model.embeddings.position_ids": torch.arange(7)[None]},
}


@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.parametrize("projected", [False, True])
def test_tensors_of_text_encoders_that_are_not_used(name: str, projected: bool, tmp_path: Path) -> None:
    config = read_architecture(clip.CLIPTextConfig, TEXT, "text_encoder")
    model: Callable[[Any], Any] = clip.CLIPTextModelWithProjection if projected else clip.CLIPTextModel
    rename = clip.rename_projected if projected else clip.rename
    found = {**model(config).state_dict(), **EXTRA[name]}
    files = checkpoint(tmp_path, {WHOLE: {key: value.clone() for key, value in found.items()}}, "text_encoder")
    if projected and "another width" in name:
        text = message(lambda: check_weights(lambda: model(config), files, "text_encoder", rename=rename))
        assert "text_projection.weight has the shape [9, 9]" in text
    else:
        check_weights(lambda: model(config), files, "text_encoder", rename=rename)


def test_a_projection_that_a_pipeline_needs_is_missed_by_name(tmp_path: Path) -> None:
    config = read_architecture(clip.CLIPTextConfig, TEXT, "text_encoder")
    tensors = clip.CLIPTextModel(config).state_dict()
    files = checkpoint(tmp_path, {WHOLE: dict(tensors)}, "text_encoder")
    build = lambda: clip.CLIPTextModelWithProjection(config)  # noqa: E731
    text = message(lambda: check_weights(build, files, "text_encoder", rename=clip.rename_projected))
    assert "lacks text_projection.weight" in text


MARKS = {
    "UTF-8": ("utf-8", codecs.BOM_UTF8),
    "UTF-16, little": ("utf-16-le", codecs.BOM_UTF16_LE),
    "UTF-16, big": ("utf-16-be", codecs.BOM_UTF16_BE),
    "UTF-32, little": ("utf-32-le", codecs.BOM_UTF32_LE),
    "UTF-32, big": ("utf-32-be", codecs.BOM_UTF32_BE),
}


@pytest.mark.parametrize("name", MARKS)
def test_json_may_have_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    encoding, mark = MARKS[name]

    def marked(content: dict[str, Any]) -> bytes:
        return mark + json.dumps(content, ensure_ascii=False).encode(encoding)

    found = checkpoint(tmp_path, {"config.json": marked({"in_channels": 9, "//": "é"})})
    (tmp_path / "model_index.json").write_bytes(marked({"_class_name": "P", "unet": ["diffusers", "X"]}))
    assert found.config("unet") == {"in_channels": 9}
    assert found.index["_class_name"] == "P"
    shards = {"model.safetensors.index.json": marked({"weight_map": {"a": "model-00001-of-00001.safetensors"}})}
    save_file({"a": torch.ones(1)}, tmp_path / "unet" / "model-00001-of-00001.safetensors")
    (tmp_path / "unet" / "model.safetensors.index.json").write_bytes(shards["model.safetensors.index.json"])
    assert len(CheckpointFolder.open(tmp_path).files("unet")) == 1
