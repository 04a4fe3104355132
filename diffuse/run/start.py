"""Starts the record of a run, here and in the tracking store, so that a run that fails is recorded too."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from omegaconf import DictConfig

from diffuse import tracking
from diffuse.checkpoints.checkpoint import weights_tag
from diffuse.config.request import RequestDraft
from diffuse.errors import Stop
from diffuse.media.files import file_stem
from diffuse.record.record import record_with_seed, run_record
from diffuse.record.values import flatten, indented_json, yaml_text
from diffuse.run.prepare import PreparedRun
from diffuse.tracking.tags import (
    GIT_COMMIT_TAG,
    JOB_TAG,
    SWEEP_TAG,
    USER_COMMIT_TAG,
    VERSION_TAG,
    WEIGHTS_TAG,
    run_name,
    user_tags,
)

_NOT_PARAMETERS = ("tracking", "report")  # they say who records the run, and what is made of many runs


class SweepJobTags(NamedTuple):
    """The place of a run in a sweep, as the tracking store knows it."""

    sweep: str  # the sweep's identity
    key: str  # the job's
    name: str  # the run's, for people
    run_id: str  # the tag by which the store finds the run
    again: bool  # the run may be in the store already


@dataclass(frozen=True)
class StartedRun:
    """A run that is recorded as started."""

    prepared: PreparedRun
    record: dict[str, Any]  # as it is before there are results
    tracked: tracking.TrackedRun

    @contextmanager
    def recording_errors(self) -> Iterator[None]:
        """Records an error in the block as the run's end, and raises it again."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Records why the run ended without results."""
        stopped = isinstance(error, KeyboardInterrupt | Stop | SystemExit)
        self.tracked.finish(f"{type(error).__name__}: {error}", interrupted=stopped)


def start_run(
    prepared: PreparedRun, tracker: tracking.Tracker, overrides: Sequence[str], tags: SweepJobTags | None = None
) -> StartedRun:
    """Records what is going to be made. `tags` are those of a sweep's job."""
    request, pipeline = prepared.request, prepared.opened.pipeline
    memory = pipeline.memory
    batch_size = pipeline.batch_size(request)
    choice = prepared.opened.choice
    record = run_record(
        prepared.cfg,
        overrides,
        request,
        weights=prepared.weights,
        hardware={
            **prepared.opened.hardware.as_record(),
            "dtypes": memory.dtypes,
            "memory_profile": {**asdict(memory.profile), "batch_size": batch_size},
            **({} if choice is None else {"levers": list(choice.levers)}),
        },
        inputs=prepared.inputs_record,
        shrunk_from=None if prepared.shrunk is None else prepared.shrunk.as_record(),
        text_backend=pipeline.text_record(request),
    )
    return _track(prepared, record, tracker, tags)


def start_similar_run(
    started: StartedRun,
    cfg: DictConfig,
    draft: RequestDraft,
    tracker: tracking.Tracker,
    overrides: Sequence[str],
    tags: SweepJobTags,
) -> StartedRun:
    """Prepares and starts a run that differs from `started` in its seed and its folder alone.

    It takes a third of the time of `prepare` and `start_run`.
    """
    prepared = replace(
        started.prepared,
        cfg=cfg,
        request=replace(started.prepared.request, seed=draft.seed),
        samplers=copy.deepcopy(started.prepared.samplers),  # a sampler keeps its timesteps
        inputs=draft.inputs,
        reference=draft.reference,
    )
    record = record_with_seed(started.record, overrides, seed=draft.seed, folder=cfg.output.dir)
    return _track(prepared, record, tracker, tags)


def _track(
    prepared: PreparedRun, record: dict[str, Any], tracker: tracking.Tracker, tags: SweepJobTags | None
) -> StartedRun:
    request = prepared.request
    settings = prepared.cfg.tracking
    own = file_stem(request.prompt, request.seed, prepared.cfg.output.name) if tags is None else tags.name
    tracked = tracker.start(
        run_name(settings, own, in_sweep=tags is not None),
        _parameters(record["config"]),
        user_tags(settings) | _tags(record) | ({} if tags is None else {SWEEP_TAG: tags.sweep, JOB_TAG: tags.key}),
        {
            "config.yaml": yaml_text(record["config"]),
            "overrides.yaml": yaml_text(record["overrides"]),
            "record.json": indented_json(record),
        },
        weights=record["weights"],
        id=None if tags is None else tags.run_id,
        again=tags is not None and tags.again,
    )
    return StartedRun(prepared, record, tracked)


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns by dotted key the values of the configuration that are set; `config.yaml` has all of it."""
    flat = flatten({name: value for name, value in config.items() if name not in _NOT_PARAMETERS})
    return {name: value for name, value in flat.items() if value is not None}


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        VERSION_TAG: record["diffuse"],
        WEIGHTS_TAG: weights_tag(record["weights"]),
        GIT_COMMIT_TAG: (record["git"] or {}).get("commit"),
        USER_COMMIT_TAG: record.get("user_git", {}).get("commit"),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}
