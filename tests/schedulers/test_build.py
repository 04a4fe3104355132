"""Samplers are built from options and published settings, found by name, and labelled as viewers know them."""

from __future__ import annotations

import pytest

from diffuse.config.compose import compose_config
from diffuse.config.groups import group_options
from diffuse.errors import CheckpointError, ConfigError
from diffuse.schedulers.build import build_sampler, sampler_label

DDIM = {"_target_": "diffuse.schedulers.ddim.DDIM", "name": "ddim"}
SD21 = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "trained_betas": None,
}
EULER = {"_target_": "diffuse.schedulers.euler.Euler", "name": "euler"}


def test_a_checkpoint_of_another_sampler_is_read() -> None:
    published = {**SD21, "_class_name": "PNDMScheduler", "use_karras_sigmas": False, "interpolation_type": "linear"}
    scheduler = build_sampler({**DDIM, "eta": 0.2, "timestep_spacing": None}, published)
    assert (scheduler.prediction_type, scheduler.steps_offset, scheduler.eta) == ("v_prediction", 1, 0.2)
    changed = build_sampler({**DDIM, "timestep_spacing": "trailing"}, published)
    assert changed.timestep_spacing == "trailing"
    with pytest.raises(CheckpointError, match="brand_new_trick=True is not implemented"):
        build_sampler(DDIM, {**published, "brand_new_trick": True})


def test_a_flow_matching_model_is_refused_with_what_fits_it() -> None:
    with pytest.raises(ConfigError, match="euler does not fit this model, which predicts flow_prediction; these do: "):
        build_sampler(EULER, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


DPM = {"_target_": "diffuse.schedulers.dpmpp_2m.DPMpp2M", "name": "dpmpp_2m"}
SDE = {"_target_": "diffuse.schedulers.dpmpp_2m_sde.DPMpp2MSDE", "name": "dpmpp_2m_sde"}
UNIPC = {"_target_": "diffuse.schedulers.unipc.UniPC", "name": "unipc"}


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (DPM, "algorithm_type", "dpmsolver"),
        (DPM, "algorithm_type", "sde-dpmsolver"),
        (DPM, "algorithm_type", "dpmsolver+++"),
        (DPM, "solver_type", "bh3"),
        (SDE, "solver_type", "euler"),
        (DPM, "variance_type", "learned_range"),
        (SDE, "variance_type", "learned"),
        (UNIPC, "solver_p", {"_class_name": "DDIMScheduler"}),
        (UNIPC, "use_flow_sigmas", True),
        (EULER, "timestep_type", "continuous"),
    ],
)
def test_what_a_sampler_would_obey_and_has_not_is_refused_by_name(
    options: dict[str, str], name: str, value: object
) -> None:
    with pytest.raises(CheckpointError, match=f"scheduler_config.json: {name}=.* is not implemented"):
        build_sampler(options, {**SD21, name: value})


@pytest.mark.parametrize(
    ("options", "published", "taken"),
    [
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}),
        (DPM, {"algorithm_type": "deis", "solver_type": "logrho"}, {"algorithm_type": "dpmsolver++"}),
        (DPM, {"solver_order": 3, "use_lu_lambdas": True}, {"solver_order": 3, "use_lu_lambdas": True}),
        (DPM, {"lambda_min_clipped": float("-inf")}, {"lambda_min_clipped": float("-inf")}),
        (DPM, {"lambda_min_clipped": -5.1, "variance_type": "fixed_small"}, {"lambda_min_clipped": -5.1}),
        (SDE, {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}),
        ({**DPM, "algorithm_type": "dpmsolver++"}, {"algorithm_type": "dpmsolver"}, {"algorithm_type": "dpmsolver++"}),
        (EULER, {"interpolation_type": "log_linear"}, {"interpolation_type": "log_linear"}),
        (EULER, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, {}),  # another sampler's
    ],
)
def test_what_is_taken_of_published_settings(
    options: dict[str, str], published: dict[str, object], taken: dict[str, object]
) -> None:
    sampler = build_sampler(options, {**SD21, **published})
    assert {name: getattr(sampler, name) for name in taken} == taken


LABELS = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "flow_match_euler": "flow_match_euler",
    "heun": "Heun",
    "lcm": "LCM",
    "pndm": "PLMS",
    "unipc": "UniPC",
}


def test_every_sampler_has_its_label() -> None:
    names = group_options("scheduler")
    labels = {name: sampler_label(compose_config([f"scheduler={name}"]).scheduler) for name in names}
    assert labels.items() >= LABELS.items()  # files of earlier versions say so
    assert len({*labels.values()}) == len(labels)


@pytest.mark.parametrize("target", ["", "os.system", "diffuse.schedulers.gone.Gone", "diffuse.schedulers.ddim.torch"])
def test_a_sampler_that_is_not_here_is_labelled_by_its_name(target: str) -> None:
    assert sampler_label({"_target_": target, "name": "gone"}) == "gone"
