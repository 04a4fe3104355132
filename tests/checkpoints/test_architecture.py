"""Published configurations: read into a dataclass, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from checkpoint_files import message
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuse.checkpoints.architecture import read_architecture
from diffuse.errors import CheckpointError
from diffuse.models.text_encoder.clip import CLIPTextConfig
from diffuse.models.text_encoder.gemma3 import Gemma3TextConfig
from diffuse.models.text_encoder.ltx2_connectors import LTX2TextConnectorsConfig
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig
from diffuse.models.vae.autoencoder_kl import AutoencoderKLConfig


@dataclass(frozen=True)
class Settings:
    width: int = 8
    scale: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    heads: int | tuple[int, ...] = 1
    shift: float | None = None
    linear: bool = False
    kind: str = "a"

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"act_fn": ("silu", "swish"), "pad": (1, (0, 1)), "flag": (False,)}
    IGNORED: ClassVar[frozenset[str]] = frozenset({"dropout"})


@dataclass(frozen=True)
class Needy:
    width: int


def test_architecture_takes_the_published_values() -> None:
    raw = {
        "_class_name": "Net",
        "width": 16,
        "scale": 2,
        "sizes": [3, 4],
        "heads": [5, 6],
        "linear": True,
        "act_fn": "swish",
        "pad": [0, 1],
        "flag": False,
        "dropout": 0.5,
        "unknown": None,
        "unknown_too": [],
        "unknown_three": False,
    }
    result = read_architecture(Settings, raw, "unet/config.json")
    assert result == Settings(width=16, scale=2.0, sizes=(3, 4), heads=(5, 6), linear=True)
    assert isinstance(result.scale, float)
    assert read_architecture(Settings, {}, "") == Settings()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu' is not implemented, only 'silu' or 'swish'"),
        ({"flag": 0}, "flag=0 is not implemented"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' is not implemented"),
        ({"dual": True}, "dual=True is not implemented"),
        ({"unknown": 0}, "unknown=0 is not implemented"),
        ({"width": "16"}, "width='16' should be an integer"),
        ({"width": 16.5}, "width=16.5 should be an integer"),
        ({"width": True}, "width=True should be an integer"),
        ({"width": None}, "width=None should be an integer"),
        ({"linear": 1}, "linear=1 should be true or false"),
        ({"sizes": 3}, "sizes=3 should be a list of an integer"),
        ({"heads": ["a"]}, "heads=['a'] should be an integer or a list of an integer"),
    ],
)
def test_architecture_refuses_by_name(raw: dict[str, Any], says: str) -> None:
    text = message(lambda: read_architecture(Settings, raw, "FOLDER/unet/config.json"))
    assert text.startswith("FOLDER/unet/config.json: ") and says in text


@pytest.mark.parametrize(
    ("cls", "raw"),
    [
        (UNet2DConditionConfig, {"layers_per_block": 10**8}),
        (UNet2DConditionConfig, {"layers_per_block": [2, 2, 10**8, 2]}),
        (UNet2DConditionConfig, {"transformer_layers_per_block": [1, [1, 10**8], 1, 1]}),
        (UNet2DConditionConfig, {"block_out_channels": [32] * 10**5, "down_block_types": ["DownBlock2D"] * 10**5}),
        (AutoencoderKLConfig, {"layers_per_block": 1001}),
        (CLIPTextConfig, {"num_hidden_layers": 2**62}),
        (Gemma3TextConfig, {"num_hidden_layers": 10**7}),
        (LTX2TextConnectorsConfig, {"video_connector_num_layers": 10**7}),
    ],
)
def test_more_layers_than_any_model_has_are_refused_before_they_are_made(cls: type, raw: dict[str, Any]) -> None:
    text = message(lambda: read_architecture(cls, raw, "unet/config.json"))
    assert "is more than 1000; the file is damaged, or made to fill the memory" in text and len(text) < 300


def test_architecture_needs_what_has_no_default() -> None:
    assert "lacks the setting width" in message(lambda: read_architecture(Needy, {}, "config.json"))


@dataclass(frozen=True)
class Part(Settings):
    SECTION: ClassVar[str] = "part_config"


def test_architecture_takes_its_section_of_a_file_of_several_models() -> None:
    whole = {"part_config": {"width": 3, "act_fn": "silu"}, "other_config": {"depth": 4}, "width": 5, "kind": "whole"}
    assert read_architecture(Part, whole, "config.json") == Part(width=3)
    assert read_architecture(Part, {"width": 5}, "config.json") == Part(width=5)
    text = message(lambda: read_architecture(Part, {"part_config": {"act_fn": "gelu"}}, "FOLDER/config.json"))
    assert text.startswith("FOLDER/config.json: part_config: act_fn='gelu'")
    assert "part_config=5 should be" in message(lambda: read_architecture(Part, {"part_config": 5}, "config.json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from([*Settings.__dataclass_fields__, "act_fn", "pad", "x"]), JSON, max_size=4))
def test_architecture_either_fits_or_says_why(raw: dict[str, Any]) -> None:
    try:
        result = read_architecture(Settings, raw, "config.json")
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(result.width, int) and isinstance(result.sizes, tuple) and isinstance(result.kind, str)
