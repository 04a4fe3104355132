"""Every configuration in `conf/` composes, and says only what the code knows."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import diffuse
from omegaconf import OmegaConf

from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.groups import SHIPPED, conf_dir, group_options, load_group
from diffuse.config.request import draft_requests
from diffuse.config.root import Config
from diffuse.run import open as opening
from diffuse.schema import GenerationRequest
from diffuse.sweep.job_folder import job_identity

CONF = conf_dir()
HYDRAS = CONF / "hydra"  # launchers and sweepers, see test_launchers.py and test_optuna.py
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path != HYDRAS)
EVERY = [(group, option) for group in GROUPS for option in group_options(group)]
OPTIONS = [pair for pair in EVERY if pair != ("model", "auto")]  # see run/test_model_auto.py
MODELS = sorted(load_group("model"))
FILMS = ("ltx2", "ltx2_3", "ltx2_distilled", "ltx2_two_stages")  # published in one precision, and not pinned yet


def content(group: str, option: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_groups() -> None:
    assert {"experiment", "hardware", "memory_profile", "model", "scheduler", "tracking"} <= set(GROUPS)
    assert len(OPTIONS) >= 15
    assert len([*CONF.rglob("*.yaml")]) == len(EVERY) + 1 + len([*HYDRAS.rglob("*.yaml")])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_makes_a_request(group: str, option: str) -> None:
    cfg = compose_config([f"{group}={option}"])
    resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if group != "experiment":
        assert resolved[group]["name"] == option  # and nothing else is called so
    if resolved["suite"] is not None:  # which makes requests of its own, see test_smoke.py
        return
    if resolved["prompt"] is None and "prompt" not in resolved["model"]["request_defaults"]:
        cfg = compose_config([f"{group}={option}", "prompt=a cat"])
    (draft,) = draft_requests(cfg)
    assert draft.prompt and draft.seed >= 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_a_scheduler_that_is_chosen_is_the_one_that_runs(model: str, scheduler: str) -> None:
    """A model may choose its own; the command line still wins."""
    cfg = compose_config([f"model={model}", f"scheduler={scheduler}"])
    assert (cfg.model.name, cfg.scheduler.name) == (model, scheduler)


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] != "experiment"])
def test_every_key_of_an_option_is_a_field(group: str, option: str) -> None:
    if group == "scheduler":
        assert {"_target_", "name"} <= set(content(group, option))
        return
    loaded = load_group(group)[option]
    assert is_dataclass(loaded)
    assert set(content(group, option)) - {"defaults"} <= {field.name for field in fields(loaded)}


def test_no_field_is_left_out_of_the_main_file() -> None:
    """So that `conf/config.yaml` is the whole list of what a request can say."""
    main = yaml.safe_load((CONF / "config.yaml").read_text())
    groups = {*GROUPS, "output"}
    assert {field.name for field in fields(Config)} - groups <= set(main)
    assert {field.name for field in fields(GenerationRequest)} <= set(main)


@pytest.mark.parametrize("option", MODELS)
def test_models(option: str) -> None:
    model = load_group("model")[option]
    family = opening.load_family(model._target_)
    assert {"unet", "vae"} & set(family.components) or "transformer" in family.components
    assert set(model.min_vram_gib) <= set(group_options("memory_profile")) - {"auto"}
    assert model.min_vram_gib["cpu_only"] == 0
    needs = [model.min_vram_gib[name] for name in ("full_gpu", "balanced", "unet_gpu") if name in model.min_vram_gib]
    assert needs == sorted(needs, reverse=True) and all(need > 0 for need in needs)
    assert set(model.request_defaults) <= {field.name for field in fields(Config)}
    if "/" in str(content("model", option)["source"]) and "$" not in str(content("model", option)["source"]):
        pinned = re.fullmatch("[0-9a-f]{40}", str(model.revision))
        assert pinned or option in FILMS, "a preset's source is pinned to a commit"


@pytest.mark.parametrize("option", group_options("scheduler"))
def test_schedulers(option: str) -> None:
    module, _, name = content("scheduler", option)["_target_"].rpartition(".")
    assert module == f"diffuse.schedulers.{option}"  # whoever changes the one file knows the other
    assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.parametrize("option", group_options("memory_profile"))
def test_memory_profiles_name_components_that_exist(option: str) -> None:
    components = {"*"}
    for model in load_group("model").values():
        components |= set(opening.load_family(model._target_).components)
    assert set(load_group("memory_profile")[option].on_device) <= components


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_options_say_what_they_are(group: str, option: str) -> None:
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert first.startswith("# ") and len(first) > 20


def test_help_lists_every_option(tmp_path: Path) -> None:
    said = re.sub(r"\|( .*)?\n +", "|", diffuse("--help", cwd=tmp_path).out)  # long lines go on below
    for group in GROUPS:
        line = next(line for line in said.splitlines() if line.strip().startswith(f"{group}="))
        assert line.split()[0] == f"{group}=" + "|".join(group_options(group))


@pytest.mark.parametrize("model", [name for name in group_options("model") if name not in ("auto", *SHIPPED, *FILMS)])
def test_presets_fetch_half_precision_of_their_own_source_alone(model: str) -> None:
    preset = compose_config([f"model={model}"]).model
    assert (preset.variant, preset.fetch_variant) == (None, "fp16")
    assert compose_config([f"model={model}", "model.source=someone/else"]).model.fetch_variant is None


def test_what_is_fetched_is_no_part_of_a_jobs_identity() -> None:
    """So that sweeps of earlier versions, which lack the field, go on."""
    given = (["model=sdxl"], ["model=sdxl", "model.fetch_variant=null"], ["model=sdxl", "model.variant=fp16"])
    jobs = [job_identity(resolve_config(compose_config([*overrides, "prompt=x"]))) for overrides in given]
    assert jobs[0] == jobs[1] != jobs[2]
    assert "fetch_variant" not in str(jobs[0])


def test_stepping_down_is_no_part_of_a_jobs_identity_unless_it_is_off() -> None:
    """So that sweeps of earlier versions, which lack the field, go on."""
    given = ([], ["memory_profile.step_down=true"], ["memory_profile.step_down=false"])
    jobs = [job_identity(resolve_config(compose_config([*overrides, "prompt=x"]))) for overrides in given]
    assert jobs[0] == jobs[1] != jobs[2] and "step_down" not in str(jobs[0])
