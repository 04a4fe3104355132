"""The tables of components: one denoiser and one codec a family, and names that the configuration knows."""

from __future__ import annotations

import pytest

from diffuse.config.groups import load_group
from diffuse.pipelines.components import Role, with_role
from diffuse.run.open import load_family
from diffuse.schema import COMPONENTS

FAMILIES = sorted(
    {model._target_ for group in ("model", "refiner") for model in load_group(group).values() if model._target_}
)


@pytest.mark.parametrize("target", FAMILIES)
def test_a_family_declares_its_components(target: str) -> None:
    components = load_family(target).components
    codecs = [*with_role(components, Role.image_codec), *with_role(components, Role.video_codec)]
    assert len(with_role(components, Role.denoiser)) == len(codecs) == 1
    assert len(with_role(components, Role.text_encoder)) == len(with_role(components, Role.tokenizer)) >= 1
    for name, component in components.items():
        assert (component.module is None) == (component.config is None) == (component.role is Role.tokenizer)
        assert name in COMPONENTS, "so that it can come from elsewhere than its checkpoint"
