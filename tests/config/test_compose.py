"""Composing: presets and their commits."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from diffuse.config.compose import compose_config, compose_with_hydra, config_from_data, resolve_config
from diffuse.config.groups import load_group
from diffuse.config.quoting import quote_overrides
from diffuse.errors import ConfigError


def test_the_commit_of_a_preset_is_that_of_its_own_source() -> None:
    pinned = compose_config(["model=sd21"]).model.revision
    assert re.fullmatch("[0-9a-f]{40}", pinned)
    assert load_group("model")["sd21"].revision == pinned
    assert compose_config(["model=sd21", "model.source=owner/name"]).model.revision is None
    given_ = compose_config(["model=sd21", "model.source=owner/name", f"model.revision={pinned}"])
    assert given_.model.revision == pinned
    assert compose_config(["model=sd21", "model.revision=main"]).model.revision == "main"


def test_what_hydra_gives_is_replaced_by_its_value() -> None:
    overrides = ["prompt=x", "output.name=\\${hydra:job.name}", "hydra.job.name=a b", "hydra/launcher=diffuse"]
    cfg = compose_with_hydra([*quote_overrides(overrides), "model.source=${hydra:job.name}/${seed}", "seed=3"])
    assert OmegaConf.to_container(cfg.model)["source"] == "a b/3"
    assert cfg.output.name == "\\${hydra:job.name}"
    assert resolve_config(cfg).model.source == "a b/3" and "hydra" not in resolve_config(cfg)
    with pytest.raises(ConfigError, match=r"^model.source=\$\{hydra:job.num\}: a job of a sweep has no job.num"):
        compose_with_hydra(["model.source=${hydra:job.num}"])


def test_resolved_values_are_plain_and_by_attribute() -> None:
    values = resolve_config(compose_config(["prompt=x", "long_prompt=chunk", "output.dir=${prompt}"]))
    assert (values.long_prompt, values.output.dir, values["model"]["name"]) == ("chunk", "x", "tiny")
    with pytest.raises(AttributeError):
        _ = values.nothing


def test_data_is_text_and_has_the_types_of_the_schema() -> None:
    cfg = config_from_data({"prompt": "${seed} ???", "negative_prompt": "???", "output": {"dir": "${oc.env:HOME}"}})
    assert (cfg.prompt, cfg.negative_prompt, cfg.output.dir) == ("${seed} ???", "???", "${oc.env:HOME}")
    for wrong, message in (({"sed": 1}, "sed: there is no such field"), ({"seed": "x"}, "seed: 'x' is not a whole")):
        with pytest.raises(ConfigError, match=message):
            config_from_data(wrong)
