"""What is said of overrides that cannot be used: one line, which suggests the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import diffuse
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_texts import TEXT

from diffuse.config.compose import compose_config, own_configuration
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError


def refused(*overrides: str) -> str:
    """The one line that says why."""
    with pytest.raises(ConfigError) as caught:
        draft_requests(compose_config(overrides))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


NEAREST = {
    "promt=x": "prompt",
    "sed=3": "seed",
    "+sed=3": "seed",
    "num_image=2": "num_images",
    "steps=20": "num_inference_steps",
    "cfg_scale=7": "guidance_scale",
    "guidance=7": "guidance_scale",
    "wdith=64": "width",
    "models=tiny": "model",
    "model=tini": "tiny",
    "scheduler=dim": "ddim",
    "memory_profile=full": "full_gpu",
    "tracking=mlfow": "mlflow",
    "experiment=smok": "smoke",
    "format=png": "output.format",
    "name=x": "output.name",
    "output.forma=png": "output.format",
    "output.format=jpeg": "jpg",
    "scheduler.etta=1": "scheduler.eta",
    "eta=1": "scheduler.eta",
    "hardware.detreministic=strict": "hardware.deterministic",
    "stpes=3": "num_inference_steps",
    "model.num_steps=3": "num_inference_steps",
    "denoising_strength=1": "strength",
    "sampler_name=euler": "scheduler",
    "scheduler=euler_a": "euler_ancestral",
    "scheduler=PNDM": "pndm",
    "scheduler=dpmpp_2m_karras": "dpmpp_2m with scheduler.use_karras_sigmas=true",
    "output.format=PNG": "png",
}


@pytest.mark.parametrize("override", NEAREST)
def test_a_name_that_does_not_exist_suggests_the_nearest(override: str) -> None:
    said = refused(override)
    assert said.startswith((override, override.partition("=")[0]))
    assert f"did you mean {NEAREST[override]}?" in said


OTHERS = {
    "scheduler.use_karras_sigmas=true": "the sampler has no such option; scheduler=deis|",
    "scheduler.solver_order=2": "the sampler has no such option; scheduler=",
    "scheduler.lower_order_final=true": "the sampler has no such option; scheduler=",
    "scheduler.align_your_steps=sdxl": "the sampler has no such option; scheduler=",
    "+scheduler.interpolation_type=linear": "the sampler has no such option; scheduler=euler has one",
    "scheduler.shift=3": "the sampler has no such option; scheduler=",
    "use_karras_sigmas=true": "with one of them write scheduler.use_karras_sigmas=true",
    "interpolation_type=linear": "scheduler=euler has one; with one of them write scheduler.interpolation_type=linear",
    "scheduler.use_karas_sigmas=true": "did you mean scheduler.use_karras_sigmas?",
}


@pytest.mark.parametrize("override", OTHERS)
def test_an_option_of_other_samplers_names_them(override: str) -> None:
    assert OTHERS[override] in refused("prompt=x", override)


def test_an_option_of_the_default_sampler_is_none_of_another() -> None:
    said = refused("prompt=x", "scheduler=euler", "scheduler.eta=1")
    assert said == "scheduler.eta=1: the sampler has no such option; scheduler=ddim has one"


def test_a_name_like_no_other_suggests_nothing() -> None:
    assert "did you mean" not in refused("zzzzqqqq=1")
    assert "diffuse --help" in refused("zzzzqqqq=1")
    assert "did you mean" not in refused("output.format=exr")
    assert "suite" not in refused("+stile=oil")


def test_a_group_of_the_user_is_added(tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "oil.yaml").write_text("# @package _global_\nnegative_prompt: photo\n")
    with own_configuration(["+style=oil"], str(tmp_path)):
        assert compose_config(["+style=oil"]).negative_prompt == "photo"
        assert refused("style=oil") == "style=oil: is a group of your own files, which is added: write +style=oil"
        assert "did you mean +style?" in refused("+stile=oil")


KEYS = ["seed", "width", "guidance_scale", "model", "output.format", "scheduler", "output.dir", "x", "", "+seed"]


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(KEYS), value=TEXT)
def test_nothing_but_a_one_line_error_comes_of_any_override(key: str, value: str) -> None:
    try:
        draft_requests(compose_config([f"{key}={value}"]))
    except ConfigError as error:
        assert str(error) and len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("scheduler=ddim", "tracking=x${seed}"),
            "tracking=x${seed}: should be NAME=VALUE, or GROUP=OPTION; there are mlflow",
        ),
        (
            ("seed=1", "scheduler=${nothing}"),
            "scheduler=${nothing}: should be NAME=VALUE, or GROUP=OPTION; there are ddim",
        ),
        (
            ("model=tiny", "hardware=${output}"),
            "hardware=${output}: should be NAME=VALUE, or GROUP=OPTION; there are auto",
        ),
        (("model=tiny", "refiner=3"), "refiner=3: should be NAME=VALUE, or GROUP=OPTION; there are none"),
        (("model=tiny", "experiment=true"), "experiment=true: should be NAME=VALUE, or GROUP=OPTION; there are"),
        (("seed=1", "hydra/job_logging=3"), "hydra/job_logging=3: should be NAME=VALUE, or GROUP=OPTION"),
        (
            ("seed=1", "tracking.tags=x"),
            "tracking.tags=x: it has names and values; set one of them, as tracking.tags.N",
        ),
        (("seed=1", "+tracking.tags=[1]"), "+tracking.tags=[1]: it has names and values"),
        (("seed=1", "timesteps={a:1}"), "timesteps={a:1}: should be a list; write timesteps=[VALUE,VALUE]"),
        (("seed=1", "sigmas={a:1}"), "sigmas={a:1}: should be a list; write sigmas=[VALUE,VALUE]"),
        (("seed=1", "~tracking"), "~tracking: a group cannot be removed; choose tracking=none"),
        (("seed=1", "tracking.tags.run.kind=x"), "tracking.tags.run: a dot makes tags within a tag"),
        (("seed=1", "~hydra.job"), "~hydra.job: cannot be removed"),
        (("model.request_defaults.prompt=${output}",), "model.request_defaults.prompt: should be one value"),
        (("model.request_defaults.prompt={a:1}",), "model.request_defaults.prompt: should be one value"),
        (("model.request_defaults.prompt=[1]",), "model.request_defaults.prompt: should be a text"),
        (("prompt=x", "model.request_defaults.width=${output}"), "model.request_defaults.width: should be one value"),
    ],
    ids=str,
)
def test_a_value_of_another_shape_is_named_with_what_it_should_be(overrides: tuple[str, ...], said: str) -> None:
    assert refused(*overrides).startswith(said)


def test_a_printed_configuration_says_where_an_interpolation_is_wrong(tmp_path: Path) -> None:
    for override in ("suite=x${width}", "model.vae=x${width}", "timesteps=x${width}"):
        done = diffuse("--cfg", "job", "--resolve", "seed=1", override, cwd=tmp_path)
        assert done.status == 2 and done.err.startswith(f"diffuse: {override}: ") and done.err.count("\n") == 1
