"""`diffuse -m`: makes the missing jobs of a sweep. A job that fails does not stop the others, and is reported last."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from diffuse import tracking
from diffuse.cli.hydra_main import run_jobs
from diffuse.cli.output import report_error, report_line
from diffuse.config.mistakes import explain_errors
from diffuse.errors import ConfigError, DiffuseError, RunError, is_wrong_request
from diffuse.schema import PROMPT_FIELDS
from diffuse.sweep.claim import release_folder
from diffuse.sweep.folder import Sweep, open_sweep_folder
from diffuse.sweep.interrupt import Interruption
from diffuse.sweep.job import common_reason
from diffuse.sweep.launchers.plugins import register_plugins
from diffuse.sweep.plan import plan_sweep
from diffuse.sweep.progress import SweepProgress
from diffuse.sweep.runner import JobRunner
from diffuse.terminal import print_error, say

_MAX_REPORTED = 50  # failures
_STOPPING = "stopping after this step; Ctrl-C again stops at once"


def run_sweep(flags: list[str], overrides: list[str], command_line: list[str], yes: bool) -> None:
    """Runs `diffuse -m`.

    Args:
        flags: Hydra's own options.
        overrides: in Hydra's grammar.
        command_line: the same as the user typed them.
        yes: agrees to any number of jobs.

    Raises:
        DiffuseError: jobs failed, which are reported in a line each.
    """
    register_plugins()
    with explain_errors(command_line):
        sweep, base, sweep_overrides = plan_sweep(overrides, command_line, yes=yes)
    if not sweep.may_exist:  # otherwise there may be nothing to do
        tracking.start_worker(base.tracking)
    progress, interruption = SweepProgress(), Interruption()
    runner = JobRunner(sweep, base.tracking, interruption=interruption, callbacks=progress)
    release = partial(release_folder, sweep.folder)
    report: list[Path] = []
    with open_sweep_folder(sweep), interruption.handle_ctrl_c(_STOPPING, progress.stop, release):
        try:
            run_jobs(runner, base, flags, sweep_overrides, command_line, sweep.folder)
            if progress.has_new_pictures or (progress.finished_jobs and not (sweep.folder / "report").is_dir()):
                report = _make_report(sweep, progress, base.report.sheets) if base.report.make else []
                runner.log_summary(progress.metrics, report)
        finally:
            progress.warn(runner.close())
            if interruption.requested:
                progress.say(f"{progress.summary()}; the same command goes on from here")
    _end_sweep(sweep, progress, report[0] if report else None)


def report_single(sweep: Sweep) -> None:
    """Says so where nothing is swept over, and what may have been meant."""
    if sweep.axes or sweep.jobs != 1:
        return
    for name, value in (override.split("=", 1) for override in sweep.overrides if "=" in override):
        if name in PROMPT_FIELDS and "," in value and ({*"'\""} & {value.strip()[:1], value.strip()[-1:]}):
            return say(f'note: {name} is one text here; of several, each is in quotes: {name}=\'"A","B"\'')
    say("note: -m makes one job here, as no field has several values; write NAME=A,B or NAME='range(1,9)'")


def _make_report(sweep: Sweep, progress: SweepProgress, sheets: bool) -> list[Path]:
    """Returns the files of the report, the page first; none where it failed, which costs the sweep nothing."""
    from diffuse.compare.report import ReportOptions, compare_folder

    try:
        return compare_folder(sweep.folder, options=ReportOptions(sheets=sheets))
    except Exception as error:
        progress.warn([f"there is no report: {type(error).__name__}: {error}"])
        return []


def _end_sweep(sweep: Sweep, progress: SweepProgress, report: Path | None) -> None:
    """Prints the summary and the failures. Raises an error where there are failures."""
    errors = [job.error for job in progress.failed if job.error is not None]
    all_wrong = all(map(is_wrong_request, errors))
    if reason := common_reason(progress.jobs):
        raise ConfigError(reason)
    if progress.jobs and not (all_wrong and len(errors) == len(progress.jobs)):
        report_single(sweep)
        progress.say(progress.summary(report))
    for job in progress.failed[:_MAX_REPORTED]:
        if isinstance(job.error, DiffuseError):
            report_line(job.complaint(sweep.axes))
        elif job.error is not None:
            report_error(job.error)
    if len(errors) > _MAX_REPORTED:
        report_line(f"and {len(errors) - _MAX_REPORTED} more")
    if errors:
        jobs = "1 job" if len(errors) == 1 else f"{len(errors)} jobs"
        message = f"{jobs} of the sweep failed, as said above"
        raise ConfigError(message) if all_wrong else RunError(message)
    if unprinted := print_error():
        raise RunError(f"standard output cannot be written: {unprinted.strerror}; the pictures are in {sweep.folder}")
