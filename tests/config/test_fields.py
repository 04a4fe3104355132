"""Request fields: the schema is the one place, and everything else agrees with it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import field_texts
import pytest
from omegaconf import OmegaConf

from diffuse import api
from diffuse.config.checks import bounds, check_number
from diffuse.config.compose import compose_config, config_from_data, resolve_config
from diffuse.config.root import Config
from diffuse.errors import ConfigError
from diffuse.schema import (
    LATER_FIELDS,
    REQUEST_FIELDS,
    GenerationRequest,
    RequestArguments,
    RequestField,
)
from diffuse.sweep.job_folder import job_identity

BEFORE_LATER_FIELDS = """
    prompt negative_prompt prompt_2 negative_prompt_2 long_prompt prompt_syntax seed num_images width height
    num_inference_steps timesteps guidance_scale guidance_rescale original_width original_height crop_left crop_top
    target_width target_height aesthetic_score negative_aesthetic_score denoising_end input_image mask_image strength
    resize keep_unmasked suite model refiner scheduler memory_profile hardware output
"""
NUMBERS = [field for field in REQUEST_FIELDS.values() if bounds(field) and field.name != "seed"]  # see SEED_LIMIT


@pytest.mark.parametrize("path", field_texts.texts(), ids=lambda path: path.name)
def test_generated_texts_are_those_of_the_schema(path: Path) -> None:
    """Run `python tests/support/field_texts.py` where they are not."""
    assert path.read_text(encoding="utf-8") == field_texts.texts()[path]


def test_every_field_of_a_request_is_one_of_the_configuration() -> None:
    names = [field.name for field in fields(Config)]
    others = [name for name in names if name in REQUEST_FIELDS]
    assert others == [field.name for field in fields(GenerationRequest)]
    assert names[:2] == ["prompt", "prompt_file"] and names[len(REQUEST_FIELDS) + 1] == "suite"
    hints = get_type_hints(Config)
    for name, field in REQUEST_FIELDS.items():
        assert hints[name] == field.config_type
        assert OmegaConf.structured(Config)[name] == field.config_default
        assert field.help and len(field.help) < 90


def test_arguments_in_python_are_the_fields_with_their_types() -> None:
    functions = (api.txt2img, api.img2img, api.inpaint, api.img2vid)
    parameters = {name for function in functions for name in inspect.signature(function).parameters}
    hints = get_type_hints(RequestArguments)
    assert list(hints) == [name for name in REQUEST_FIELDS if name not in parameters]
    assert set(hints) <= set(get_type_hints(api.Fields))
    for name, hint in hints.items():
        field = REQUEST_FIELDS[name]
        kind = Sequence[field.element] if field.type is tuple else field.type  # type: ignore[name-defined]
        expected = str if field.choices else kind
        assert get_args(hint) == (expected, type(None)), name


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_a_number_is_checked_against_its_range(field: RequestField) -> None:
    wrong: list[Any] = [True, "1", float("nan"), float("inf")]
    right: list[Any] = []
    if field.type is int:
        wrong.append(1.5)
    for bound, step in ((field.least, -1), (field.most, 1)):
        if bound is not None:
            right.append(bound)
            wrong.append(bound + step)
    wrong += [bound for bound in (field.above, field.below) if bound is not None]
    for value in wrong:
        with pytest.raises(ConfigError, match=f"{field.name}={value}: should be a (whole )?number {bounds(field)}"):
            check_number(field, value)
    for value in right:
        check_number(field, value)


def test_what_must_be_given_is_asked_for() -> None:
    for field in NUMBERS:
        if field.optional or field.name in ("width", "height"):
            check_number(field, None)
        else:
            with pytest.raises(ConfigError, match=f"{field.name} is not set"):
                check_number(field, None)


def test_a_record_of_an_earlier_version_has_the_default_of_a_later_field() -> None:
    data = OmegaConf.to_container(compose_config(["prompt=x"]), resolve=True, enum_to_str=True)
    assert isinstance(data, dict)
    for name in (*LATER_FIELDS, "keep_unmasked", "strength"):
        del data[name]
    cfg = config_from_data({str(name): value for name, value in data.items()})
    assert (cfg.prompt, cfg.keep_unmasked, cfg.strength) == ("x", False, None)
    assert {name: cfg[name] for name in LATER_FIELDS} == LATER_FIELDS


def test_a_later_field_that_is_not_used_leaves_the_identity_of_a_job_as_it_was() -> None:
    values = job_identity(resolve_config(compose_config(["prompt=x", "seed=1"])))
    assert sorted(values) == sorted(BEFORE_LATER_FIELDS.split())
