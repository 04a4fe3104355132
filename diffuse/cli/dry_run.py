"""`--dry-run`: says what would be made and what is there already. Loads no weights, writes nothing, opens no store."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse.cli.hydra_main import run_jobs, run_single
from diffuse.cli.output import print_line, report_line
from diffuse.config.mistakes import explain_errors
from diffuse.config.request import RequestDraft, draft_requests
from diffuse.errors import ConfigError, NotFetched
from diffuse.media.files import check_output, file_stem
from diffuse.media.formats import FRAMES
from diffuse.paths import user_path
from diffuse.schema import Download
from diffuse.sweep.job import Job, JobStatus, common_reason, wrong_jobs
from diffuse.terminal import counted, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from diffuse.sweep.listing import JobLister

_WORDS = {JobStatus.EXISTING: "there", JobStatus.DUPLICATE: "double", JobStatus.FAILED: "wrong", None: "make"}
_NOTHING = "nothing was made"


def list_run(flags: list[str], overrides: list[str], command_line: list[str]) -> None:
    """Lists the runs of a command without `-m`: one, or one for each prompt of a file.

    Raises:
        DiffuseError: the request is wrong.
    """
    run_single(flags, overrides, command_line, _list_drafts)


def _list_drafts(cfg: DictConfig, _overrides: list[str]) -> None:
    if cfg.suite is not None:
        raise ConfigError(f"--dry-run: lists pictures, and experiment={cfg.suite.name} runs checks; leave it out")
    drafts = draft_requests(cfg)
    _check_store(cfg)
    folder = user_path(cfg.output.dir, "output.dir")
    check_output(folder)
    are_here = _are_here(cfg)
    suffix = _suffix(cfg)
    for draft in drafts:
        width, height = _size(cfg, draft) if are_here else (draft.width, draft.height)
        size = f"{width} x {height}" if width and height else "the checkpoint's size"
        parts = ["a drawn seed" if cfg.seed is None else f"seed {draft.seed}", size]
        parts.append(counted(draft.fields["num_inference_steps"], "step"))
        count = draft.fields["num_images"]
        parts += [f"{count} pictures"] if count > 1 else []
        stem = file_stem(draft.prompt, draft.seed, cfg.output.name)
        file = "" if cfg.seed is None and cfg.output.name is None else f"{stem}{suffix}"
        print_line(f"make    {', '.join(parts)}: {' '.join(draft.prompt.split())} -> {folder / file}")
    runs = "1 run" if len(drafts) == 1 else f"{len(drafts)} runs"
    weights = "its weights are here" if are_here else "not all of its weights are here, they would be fetched"
    say(f"{runs} to make with model={cfg.model.name}; {weights}; {_NOTHING}")


def _suffix(cfg: DictConfig) -> str:
    """Returns the extension of a file that would be saved, with its dot; empty for a folder of frames."""
    from diffuse.pipelines.families import choose_output_format

    choose_output_format(cfg)
    name: str = cfg.output.format.name
    return "" if name == FRAMES else f".{name}"


def _check_store(cfg: DictConfig) -> None:
    """Refuses an address of the tracking store as the run would. Nothing is opened."""
    if cfg.tracking.name != "none":
        from diffuse.tracking.store import Store

        Store.from_config(cfg.tracking)


def _size(cfg: DictConfig, draft: RequestDraft) -> tuple[int, int]:
    """Checks the request against the checkpoint, of which no weight is read. Returns width and height in pixels."""
    from diffuse.run.prepare import prepare

    request = prepare(cfg, draft).request
    return request.width, request.height


def _are_here(cfg: DictConfig) -> bool:
    """Returns whether all weights are here. Nothing is fetched, and no weight is read."""
    from diffuse.checkpoints.model_sources import locate_models
    from diffuse.pipelines.families import component_names

    cfg = cfg.copy()
    cfg.model.download = Download.never
    try:
        locate_models(cfg, component_names(cfg))
    except NotFetched:
        return False
    return True


def list_sweep(flags: list[str], overrides: list[str], command_line: list[str], yes: bool) -> None:
    """Lists the jobs of a sweep: those that are there, with their files, and those that would be made.

    Raises:
        ConfigError: jobs are wrong, which are reported in a line each.
    """
    from diffuse.cli.sweep import report_single

    lister, unknown = look_up_jobs(flags, overrides, command_line, yes)
    if unknown is not None:
        return say(f"{unknown}; {_NOTHING}")
    sweep = lister.sweep
    reason = common_reason(lister.jobs)
    for job in lister.jobs:
        _print_job(job, sweep.axes, is_reported=reason is None)
    if reason is not None:
        raise ConfigError(reason)
    report_single(sweep)
    count = Counter(_WORDS[job.status] for job in lister.jobs)
    parts = [f"{count['there']} are there", f"{count['make']} to make"]
    parts += [f"{count['double']} given twice"] if count["double"] else []
    parts += [f"{count['wrong']} wrong"] if count["wrong"] else []
    jobs = "1 job" if len(lister.jobs) == 1 else f"{len(lister.jobs)} jobs"
    say(f"{jobs}: {', '.join(parts)}, in {sweep.folder}; {_NOTHING}")
    if count["wrong"]:
        raise ConfigError(wrong_jobs(count["wrong"]))


def look_up_jobs(
    flags: list[str], overrides: list[str], command_line: list[str], yes: bool
) -> tuple[JobLister, str | None]:
    """Finds out of each job of a sweep whether it is there, double or wrong. Makes and fetches nothing.

    Returns what found it out, and has the jobs; and why they are not known, where they are not.
    """
    from diffuse.sweep.launcher import OPTUNA, require_package
    from diffuse.sweep.launchers.plugins import register_plugins
    from diffuse.sweep.listing import JobLister
    from diffuse.sweep.plan import plan_sweep

    register_plugins()
    with explain_errors(command_line):
        sweep, base, sweep_overrides = plan_sweep(overrides, command_line, yes=yes)
    _check_store(base)
    lister = JobLister(sweep, base.tracking)
    if sweep.jobs is None:
        sweeper = base.hydra.runtime.choices["hydra/sweeper"]
        if sweeper == "optuna":
            require_package(OPTUNA, extra="optuna", user="hydra/sweeper=optuna")
        return lister, f"hydra/sweeper={sweeper} chooses each job by the results of those before"
    with tempfile.TemporaryDirectory(prefix="diffuse-") as folder:  # where the configuration is left
        run_jobs(lister, base, flags, sweep_overrides, command_line, Path(folder))
    return lister, None


def _print_job(job: Job, axes: list[str], is_reported: bool) -> None:
    label = " ".join(job.label(axes).split())
    files = "".join(f" -> {path}" for path in job.paths)
    print_line(f"{_WORDS[job.status]:<7} {label}{files}")
    if job.error is not None and is_reported:
        report_line(job.complaint(axes))
