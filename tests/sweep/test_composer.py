"""The configurations of a sweep's jobs are those that Hydra composes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from PIL import Image
from sweeps import swept

from diffuse.config.compose import compose_with_hydra, resolve_config
from diffuse.config.groups import CONFIG_NAME, conf_dir, without_nodes_of_plugins
from diffuse.media.load import read_record
from diffuse.sweep.composer import JobComposer
from diffuse.sweep.job_folder import job_identity


def test_what_hydra_says_of_a_job(tmp_path: Path) -> None:
    """It is in the job's values, whatever the order."""
    for name, grey in (("ddim", 50), ("euler", 200)):
        Image.new("RGB", (64, 64), (grey,) * 3).save(tmp_path / f"{name}.png")
    command = ("input_image=${hydra:runtime.choices.scheduler}.png", "num_inference_steps=2", "seed=1")
    done = swept(*command, "scheduler=ddim,euler", cwd=tmp_path)
    records = [read_record(tmp_path / path) for path in done.paths]
    assert [each["request"]["input_image"] for each in records] == ["ddim.png", "euler.png"]
    assert [each["config"]["input_image"] for each in records] == ["ddim.png", "euler.png"]
    again = swept(*command, "scheduler=euler,ddim", cwd=tmp_path)
    assert "0 made, 2 were there" in again.err and again.paths == done.paths[::-1]

    # All that is the job's own, which is not known before its values are.
    shared = "hardware,hardware.threads,tracking,report.make,output.dir,input_image"
    named = ("input_image=${hydra:job.override_dirname}.png", "num_inference_steps=2,3", "seed=1")
    for steps in (2, 3):
        shutil.copy(tmp_path / "ddim.png", tmp_path / f"num_inference_steps={steps},seed=1.png")
    done = swept(*named, f"hydra.job.config.override_dirname.exclude_keys=[{shared}]", cwd=tmp_path)
    records = [read_record(tmp_path / path) for path in done.paths]
    assert [each["request"]["num_inference_steps"] for each in records] == [2, 3]


def test_jobs_are_composed_as_hydra_composes_them(tmp_path: Path) -> None:
    """The jobs of one choice of groups share what that gives; each is what Hydra's own composition gives."""
    seen: list[tuple[list[str], dict[str, Any]]] = []
    look = JobComposer.load_sweep_config

    def watched(self: Any, master_config: Any, sweep_overrides: Any) -> Any:
        cfg = look(self, master_config, sweep_overrides)
        seen.append((list(sweep_overrides), job_identity(resolve_config(cfg))))
        return cfg

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(JobComposer, "load_sweep_config", watched)
        axes = (
            "scheduler=ddim,euler",
            "memory_profile=cpu_only,unet_gpu",
            "seed=1,2",
            "model.request_defaults.width=72,80",
        )
        shared = ("scheduler.timestep_spacing=trailing", "width=65", "hydra.verbose=false")  # which leaves it to Hydra
        swept(*axes, *shared, cwd=tmp_path, status=2)
    assert len({tuple(lines) for lines, _ in seen}) == 16
    for lines, values in seen[:16]:
        assert values == job_identity(resolve_config(compose_with_hydra(lines)))


@pytest.fixture
def composer() -> Iterator[tuple[JobComposer, DictConfig]]:
    with without_nodes_of_plugins(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield JobComposer(loader), loader.load_configuration(CONFIG_NAME, [], RunMode.MULTIRUN)


@pytest.mark.parametrize(
    "overrides",
    [
        ["+model.request_defaults.strength=0.5", "seed=1"],
        ["++model.request_defaults.width=80", "++seed=2"],
        ["~model.request_defaults.width", "seed=3"],
        ["model.request_defaults={height: 72}", "timesteps=[9,5]", "prompt='a, \\'b\\''"],
    ],
)
def test_values_that_are_set_in_other_ways(overrides: list[str], composer: tuple[JobComposer, DictConfig]) -> None:
    ours, master = composer
    theirs = job_identity(resolve_config(compose_with_hydra(overrides)))
    assert job_identity(resolve_config(ours.load_sweep_config(master, overrides))) == theirs
    assert ours.load_sweep_config(master, overrides) is ours.load_sweep_config(master, overrides)


@pytest.mark.parametrize(
    "wrong", ["seed=abc", "sed=1", "model.sauce=x", "seed@x=1", "+output.quality=1", "output.format=bmp"]
)
def test_what_is_wrong_is_said_as_hydra_says_it(wrong: str, composer: tuple[JobComposer, DictConfig]) -> None:
    ours, master = composer
    with pytest.raises(HydraException) as theirs:
        ours.load_configuration(CONFIG_NAME, ["width=64", wrong], RunMode.RUN)
    with pytest.raises(HydraException, match=re.escape(str(theirs.value))):
        ours.load_sweep_config(master, ["width=64", wrong])
