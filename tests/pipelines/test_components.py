"""The tables of components: one denoiser and one codec a family, and names that the configuration knows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from diffuse.checkpoints.weights import skeleton
from diffuse.config.groups import load_group
from diffuse.models.full_precision import FULL_PRECISION
from diffuse.pipelines.components import Role, with_role
from diffuse.run.open import load_family
from diffuse.schema import COMPONENTS

FAMILIES = sorted(
    {model._target_ for group in ("model", "refiner") for model in load_group(group).values() if model._target_}
)

WITH_ALL_PARTS: dict[str, dict[str, Any]] = {
    "LTX2VideoTransformer3DModel": {"num_layers": 1, "cross_attn_mod": True},
    "UNet2DConditionModel": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("target", FAMILIES)
def test_a_family_declares_its_components(target: str) -> None:
    components = load_family(target).components
    codecs = [*with_role(components, Role.image_codec), *with_role(components, Role.video_codec)]
    assert len(with_role(components, Role.denoiser)) == len(codecs) == 1
    assert len(with_role(components, Role.text_encoder)) == len(with_role(components, Role.tokenizer)) >= 1
    for name, component in components.items():
        assert (component.module is None) == (component.config is None) == (component.role is Role.tokenizer)
        assert name in COMPONENTS, "so that it can come from elsewhere than its checkpoint"


def test_layers_that_stay_in_full_precision_are_there() -> None:
    """A name that no network has would keep nothing."""
    networks = {each.module: each.config for target in FAMILIES for each in load_family(target).components.values()}
    configs = {module.__name__: (module, config) for module, config in networks.items() if module is not None}
    assert FULL_PRECISION.keys() <= configs.keys()
    for name, beginnings in FULL_PRECISION.items():
        module, config = configs[name]
        if beginnings:
            net = skeleton(partial(module, config(**WITH_ALL_PARTS.get(name, {}))))
            paths = [path for path, _ in net.named_modules()]
            assert [each for each in beginnings if each not in paths] == [], name
