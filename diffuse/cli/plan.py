"""`diffuse plan`: what a command would take. It loads no weights and makes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from diffuse.cli.options import MULTIRUN, YES
from diffuse.cli.output import print_line, report_line
from diffuse.config.quoting import quote_overrides
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError, DiffuseError
from diffuse.run import model_auto
from diffuse.schema import Download
from diffuse.sweep.job import JobStatus, common_reason, wrong_jobs

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from diffuse.plan.totals import Totals

_ANY_PROMPT = "a picture"  # where the user has named none: its length is all that matters


class PlanOptions(NamedTuple):
    """The options of the command."""

    as_json: bool
    card: str | None
    sweep: bool
    yes: bool


def run_plan(arguments: Sequence[str]) -> None:
    """Runs `diffuse plan ARGUMENTS`.

    Raises:
        DiffuseError: the request is wrong.
    """
    options, overrides = _split(arguments)

    from diffuse.sweep.plan import is_sweep

    if options.sweep or is_sweep(overrides):
        return _plan_sweep(options, overrides)
    asked = [*overrides, "model.download=yes"] if options.yes else overrides
    cfg = _configure(model_auto.compose_model(asked), options)
    if cfg.suite is not None:
        raise ConfigError(f"plan: plans pictures, and experiment={cfg.suite.name} runs checks; leave it out")
    drafts = draft_requests(cfg)

    from diffuse.plan.make_plan import make_plan, open_setting

    setting = open_setting(cfg, options.card)
    plan = make_plan(setting, drafts[0])
    if len(drafts) == 1:
        if options.as_json:
            print_line(json.dumps(plan.as_json(), indent=2))
        else:
            for line in plan.lines():
                print_line(line)
        return
    from diffuse.plan.totals import Totals, plan_job

    jobs = tuple(plan_job(setting, draft) for draft in drafts)
    _print(options, Totals(len(jobs), 0, 0, 0, jobs))


def _print(options: PlanOptions, totals: Totals) -> None:
    for line in [json.dumps(totals.as_json(), indent=2)] if options.as_json else totals.lines():
        print_line(line)


def _configure(cfg: DictConfig, options: PlanOptions) -> DictConfig:
    if options.yes:
        cfg.model.download = Download.yes
    if cfg.prompt is None and cfg.prompt_file is None and "prompt" not in cfg.model.request_defaults:
        cfg.prompt = _ANY_PROMPT
    return cfg


def _plan_sweep(options: PlanOptions, arguments: list[str]) -> None:
    from diffuse.cli.dry_run import look_up_jobs
    from diffuse.config.hydra_settings import check_hydra_overrides
    from diffuse.plan.make_plan import Setting, open_setting
    from diffuse.plan.predict import prompt_kinds
    from diffuse.plan.totals import PlannedJob, Totals, plan_job
    from diffuse.sweep.auto_models import resolve_swept_models

    check_hydra_overrides(arguments, sweep=True)
    command_line = resolve_swept_models(arguments)
    overrides = quote_overrides(command_line, sweep=True)
    lister, unknown = look_up_jobs(["-m"], overrides, command_line, options.yes)
    if unknown is not None:
        raise ConfigError(f"{unknown}; plan one of them")
    settings: dict[str, Setting] = {}
    planned: dict[tuple[str, ...], PlannedJob] = {}
    to_make: list[PlannedJob] = []
    for job in lister.jobs:
        if job.status is not None:
            continue
        model, lora, _, others = job.levels
        try:
            cfg, draft = lister.job_request(job)
            kinds = json.dumps(prompt_kinds(draft.request((1, 1))), sort_keys=True)  # other texts change no number
            key = model, lora, others, kinds
            if key not in planned:
                settings[model] = settings.get(model) or open_setting(_configure(cfg, options), options.card)
                setting = replace(settings[model], cfg=cfg)
                planned[key] = plan_job(setting, draft)
            to_make.append(planned[key].with_texts(draft, model))
        except DiffuseError as error:
            job.status, job.error = JobStatus.FAILED, error
    reason = common_reason(lister.jobs)
    if reason is not None:
        raise ConfigError(reason)
    for job in lister.jobs:
        if job.status is JobStatus.FAILED:
            report_line(job.complaint(lister.sweep.axes))
    count = Counter(job.status for job in lister.jobs)
    there, double, wrong = count[JobStatus.EXISTING], count[JobStatus.DUPLICATE], count[JobStatus.FAILED]
    if to_make or not wrong:
        _print(options, Totals(len(lister.jobs), there, double, wrong, tuple(to_make)))
    if wrong:
        raise ConfigError(wrong_jobs(wrong))


def _split(arguments: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """Returns the options, and the overrides."""
    flags: set[str] = set()
    card: str | None = None
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == "--card":
            card = value if equals else next(rest, "")
            if not card:
                raise ConfigError('--card: which card? such as --card "RTX 4090"')
        elif argument in ("--json", *MULTIRUN, *YES):
            flags.add(argument)
        elif argument.startswith("-"):
            raise ConfigError(f"{argument}: there is no such option here; diffuse plan --help lists them")
        else:
            overrides.append(argument)
    return PlanOptions("--json" in flags, card, bool(flags & {*MULTIRUN}), bool(flags & {*YES})), overrides
