"""An interpolation that stands for a part with fields, a list or a choice gives one, or is refused in one line."""

from __future__ import annotations

import pytest
from command import diffuse

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("suite=x${hydra.job.name}", "is no field"),
        ("suite=x${width}", "expected one of [smoke]"),
        ("suite=${output}", "not a valid input"),
        ("model.vae=x${width}", "set one of them, such as model.vae.source"),
        ("model.vae=${output}", "set one of them, such as model.vae.source"),
        ("refiner.unet=${nothing}", "is no field"),
        ("model.unet=${model.unet}", "refers to itself"),
        ("output=x${width}", "set one of them, such as output.dir"),
        ("objective=${height}", "set one of them, such as objective.metric"),
        ("report=${width}${height}", "set one of them, such as report.make"),
        ("tracking.tags=x${width}", "as tracking.tags.NAME=VALUE"),
        ("model.request_defaults=x${width}", "as model.request_defaults.NAME=VALUE"),
        ("model.min_vram_gib=${height}", "as model.min_vram_gib.NAME=VALUE"),
        ("timesteps=x${width}", "should be a list"),
        ("sigmas=${width}", "should be a list"),
        ("output.format=x${width}", "expected one of [png"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        draft_requests(compose_config(["prompt=x", "width=64", override]))
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith(override) and said in message


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("model.vae=${refiner.vae}", lambda cfg: cfg.model.vae == cfg.refiner.vae),
        ("sigmas=${timesteps}", lambda cfg: cfg.sigmas is None),
        ("suite=${prompt_file}", lambda cfg: cfg.suite is None),
        ("hardware.dtype=${model.vae.variant}", None),
        ("output.format=${model.vae.variant}", lambda cfg: cfg.output.format is None),
        ("tracking.tags=${model.request_defaults}", lambda cfg: "negative_prompt" in cfg.tracking.tags),
    ],
)
def test_what_is_of_the_kind_holds(override: str, read) -> None:  # type: ignore[no-untyped-def]
    if read is None:
        with pytest.raises(ConfigError):
            compose_config([override])
    else:
        assert read(compose_config([override]))


@pytest.mark.parametrize("command", [(), ("-m",), ("--dry-run",), ("plan",), ("download",)], ids=" ".join)
def test_every_command_says_it_in_one_line(command: tuple[str, ...], tmp_path) -> None:  # type: ignore[no-untyped-def]
    for override in ("suite=x${width}", "model.vae=x${width}"):
        done = diffuse(*command, "width=64", override, cwd=tmp_path)
        assert (done.status, done.paths, len(done.err.splitlines())) == (2, [], 1) and override in done.err
    assert list(tmp_path.iterdir()) == []
