"""References `${...}` that lead nowhere."""

from __future__ import annotations

import pytest

from diffuse.config.compose import compose_config, resolve_config
from diffuse.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("input_image=${x}.png", r"input_image: ${x} is no field; in a text that has it, write \${x}"),
        ("lora.0.source=${x}", "lora.0.source: ${x} is no field"),
        ("model.unet.source=${env:HOME}", "model.unet.source: ${env:...} is no resolver"),
        ("output.dir=${oc.env:NO_SUCH_ONE}", "output.dir: the environment has no NO_SUCH_ONE; set it, or write "),
        ("seed=${seed}", "seed: refers to itself"),
        ("hardware.device=${x}", "hardware.device=${x}: ${x} is no field"),
    ],
)
def test_one_line_says_what_is_not_there(override: str, said: str) -> None:
    own = ["lora=a.safetensors"] if override.startswith("lora") else []
    with pytest.raises(ConfigError) as caught:
        resolve_config(compose_config(["prompt=x", *own, override]))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
