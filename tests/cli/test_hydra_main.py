"""What Hydra hears of a run that fails, and what the user reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from command import SMOKE, Done, diffuse
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from sweeps import QUICK

from diffuse.cli import hydra_main
from diffuse.config.compose import compose_config
from diffuse.config.mistakes import explain_errors
from diffuse.errors import ConfigError
from diffuse.run import run as run_module
from diffuse.sweep.runner import JobRunner
from diffuse.sweep.sweeper import GridSweeper


class Heard(Callback):
    """One of `hydra.callbacks`."""

    ends: ClassVar[list[tuple[str, str, str]]] = []

    def on_job_end(self, config: Any, job_return: JobReturn, **rest: Any) -> None:
        self.ends.append(("job", job_return.status.name, type(job_return._return_value).__name__))
        print("a line of the callback", file=__import__("sys").stderr)

    def on_run_end(self, config: Any, job_return: JobReturn, **rest: Any) -> None:
        self.ends.append(("run", job_return.status.name, type(job_return._return_value).__name__))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    monkeypatch.setattr(Heard, "ends", [])
    return Heard.ends


CALLBACK = f"+hydra.callbacks.heard._target_={__name__}.Heard"


def lines(done: Done) -> list[str]:
    return [line for line in done.err.splitlines() if line != "a line of the callback"]


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("width=65", "ConfigError"),
        ("input_image=no.png", "ConfigError"),
        ("model.source=no/where/at/all", "CheckpointError"),
        ("strength=0.5", "ConfigError"),
        ("guidance_rescale=2", "ConfigError"),
    ],
)
def test_a_run_that_fails_is_told_to_hydra(override: str, kind: str, heard: list[Any], tmp_path: Path) -> None:
    done = diffuse(*SMOKE, "tracking=none", CALLBACK, override, cwd=tmp_path)
    assert done.status == 2 and len(lines(done)) == 1 and "a line of the callback" in done.err, done.err
    assert heard == [("job", "FAILED", kind), ("run", "FAILED", kind)]


def test_a_run_that_fails_later_is_told_too(heard: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError in it is no wrong override."""

    def broken(*given: Any, **options: Any) -> Any:
        raise ValueError("a mistake of ours")

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "compute", broken)
        done = diffuse(*SMOKE, "tracking=none", CALLBACK, cwd=tmp_path)
    assert done.status == 1 and done.err.endswith("ValueError: a mistake of ours\n"), done.err
    assert "Error executing job" not in done.err and "NAME=VALUE" not in done.err
    assert heard[0] == ("job", "FAILED", "ValueError")
    assert diffuse(*SMOKE, "tracking=none", CALLBACK, cwd=tmp_path).status == 0
    assert [status for _, status, _ in heard] == ["FAILED", "FAILED", "COMPLETED", "COMPLETED"]


def test_jobs_of_hydras_own_launcher_are_told(
    heard: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **options: Any) -> Any:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(run_module, "compute", broken)
    given = (*QUICK, CALLBACK, "hydra/launcher=basic", "seed=1,2", "num_inference_steps=1")
    done = diffuse("-m", *given, cwd=tmp_path)
    assert done.status == 1 and "Error executing job" not in done.err, done.err
    assert heard == [("job", "FAILED", "ValueError")] * 2
    assert "2 jobs: 0 made, 0 were there, 2 failed" in done.err and "NAME=VALUE" not in done.err


@pytest.mark.parametrize("where", ["sweeper", "job"])
def test_a_value_error_in_a_sweep_is_no_wrong_override(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **options: Any) -> Any:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(*((GridSweeper, "batches") if where == "sweeper" else (JobRunner, "compose_job")), broken)
    done = diffuse("-m", *QUICK, "seed=1,2", "num_inference_steps=1", cwd=tmp_path)
    assert done.status == 1 and "ValueError: a mistake of ours" in done.err and "NAME=VALUE" not in done.err, done.err


def test_hydras_own_value_errors_are_explained() -> None:
    with pytest.raises(ValueError, match=r"^ours$"), explain_errors(["model=3"]):
        raise ValueError("ours")
    with pytest.raises(ConfigError, match="model=3: should be NAME=VALUE, or GROUP=OPTION"):
        compose_config(["model=3"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("seed=1,2,3", "width=65"), "width=65: should be a multiple of 8"),
        (("seed=1,2", "num_inference_steps=1,2", "guidance_rescale=3"), "guidance_rescale=3"),
        (("seed=1,2", "input_image=no.png"), "no.png"),
        (("seed=1,1,2", "height=65"), "height=65"),
        (("seed=1,1,2", "height=65", "--dry-run"), "height=65"),
    ],
)
def test_one_reason_is_one_line(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = diffuse("-m", *QUICK, *overrides, cwd=tmp_path)
    assert done.status == 2 and len(done.err.splitlines()) == 1 and said in done.err, done.err


def test_several_reasons_are_a_line_each(tmp_path: Path) -> None:
    done = diffuse("-m", *QUICK, "seed=1", "width=65,66", cwd=tmp_path)
    assert done.status == 2 and len(done.err.splitlines()) == 3, done.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("hydra.sweeper.n_trials=x",), "hydra.sweeper.n_trials=x: should be a whole number of 1 or more"),
        (("hydra.sweeper.n_trials=0",), "hydra.sweeper.n_trials=0: should"),
        (("hydra.sweeper.n_trials=2.5",), "hydra.sweeper.n_trials=2.5: should"),
        (("hydra.sweeper.n_jobs=none",), "hydra.sweeper.n_jobs=none: should"),
        (("hydra.sweeper.direction=up",), "hydra.sweeper.direction=up: should be maximize or minimize"),
        (("hydra.sweeper.max_failure_rate=7",), "hydra.sweeper.max_failure_rate=7: should be a number from 0 to 1"),
        (("hydra/sweeper=basic", "hydra.sweeper.max_batch_size=x"), "hydra.sweeper.max_batch_size=x: should"),
        (("guidance_scale=interval(8,1)",), "hydra/sweeper=optuna: "),
        (("hydra.sweeper.sampler.seed=x",), "hydra.sweeper.sampler: "),
    ],
)
def test_settings_of_a_sweeper_are_one_line(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    if "hydra/sweeper=basic" in overrides:
        given: tuple[str, ...] = ("-m", "seed=1,2")
    else:
        given = ("experiment=tune_guidance",)
    done = diffuse(*given, *QUICK, *overrides, cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert said in done.err


def test_a_part_that_is_not_there_is_a_wrong_request(tmp_path: Path) -> None:
    done = diffuse("--cfg", "job", "-p", "model.nope", cwd=tmp_path)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert done.err.startswith("diffuse: ") and "model.nope" in done.err
    assert diffuse("--cfg", "job", "-p", "model.name", cwd=tmp_path).out.strip() == "tiny"


def test_hydras_folder_of_a_single_run_is_refused(tmp_path: Path) -> None:
    done = diffuse(*SMOKE, "tracking=none", "hydra.output_subdir=.hydra", cwd=tmp_path)
    assert (done.status, done.out, list(tmp_path.iterdir())) == (2, "", [])
    assert done.err.startswith("diffuse: hydra.output_subdir=.hydra: "), done.err


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3", "scheduler=euler", "scheduler.timestep_spacing=trailing", 'prompt="a cat, small"'],
        ["memory_profile=low", "hardware=cpu", "tracking=none", "output.dir=out", "model.source=here"],
        ["experiment=smoke", "hardware.threads=2"],
        ["prompt=${seed}", "scheduler=euler", "scheduler.use_karras_sigmas=true"],
        ["timesteps=[9,3]", "lora=[a,b]", "~experiment"],
    ],
)
def test_a_plain_run_is_composed_as_hydra_composes_it(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[DictConfig, list[str]]] = []

    def run() -> None:
        hydra_main.run_single([], list(overrides), overrides, lambda *task: given.append(task))

    with monkeypatch.context() as patched:
        patched.setattr(hydra_main, "needs_hydra", lambda _: True)
        run()
    with monkeypatch.context() as patched:
        patched.setattr(hydra_main, "main", lambda **_: pytest.fail("composed twice"))
        run()
    (by_hydra, its_overrides), (plain, ours) = given
    assert its_overrides == ours == overrides
    assert OmegaConf.to_yaml(plain).splitlines() == OmegaConf.to_yaml(by_hydra).splitlines()
    assert OmegaConf.is_struct(plain) == OmegaConf.is_struct(by_hydra)


@pytest.mark.parametrize(
    ("override", "said"),
    [("prompt=${hydra:mode}", "RunMode.RUN"), ("prompt=${hydra:runtime.choices.scheduler}", "ddim")],
)
def test_a_run_with_hydras_values_is_hydras(override: str, said: str) -> None:
    prompts: list[str] = []
    hydra_main.run_single([], [override], [override], lambda cfg, _: prompts.append(cfg.prompt))
    assert prompts == [said]
