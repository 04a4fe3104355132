"""A job of a sweep in memory: its overrides, its status, and the order in which jobs are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from diffuse.config.quoting import unquote_overrides
from diffuse.config.request import RequestDraft
from diffuse.errors import is_wrong_request

LEVELS = 4  # of what jobs have in common: the models, their LoRA files, the texts, the rest
_NAME_CHARACTERS = 50  # of a run


class JobStatus(StrEnum):
    """How a job ended."""

    MADE = "made"
    EXISTING = "there"  # an earlier sweep has made it
    FAILED = "failed"
    LEFT = "left"  # not made, because the sweep was stopped
    DUPLICATE = "double"  # the same as an earlier job of this sweep


@dataclass(eq=False)
class Job:
    """A job of a sweep, and how it ended."""

    number: int  # in the order of the command line
    overrides: Sequence[str]  # in Hydra's grammar
    may_exist: bool = False  # a worker that died may have recorded it
    key: str = ""
    folder: Path = Path()
    draft: RequestDraft | None = None
    levels: tuple[str, ...] = ()  # digests of what it has in common with other jobs, the costliest to change first
    status: JobStatus | None = None
    error: Exception | None = None
    paths: list[Path] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def label(self, axes: Sequence[str]) -> str:
        """Returns the overrides that differ between the jobs of the sweep, for the user."""
        typed = unquote_overrides(self.overrides)
        return " ".join(line for line in typed if line.partition("=")[0] in axes) or f"job {self.number}"

    def complaint(self, axes: Sequence[str]) -> str:
        """Returns the line about a job that failed: its label and the reason, unless that begins with the label."""
        label, reason = " ".join(self.label(axes).split()), str(self.error)
        return reason if reason.startswith(f"{label}: ") else f"{label}: {reason}"

    def run_name(self, axes: Sequence[str]) -> str:
        """Returns the name of its run. It is short because MLflow's page makes columns as wide as names."""
        label = " ".join(self.label(axes).replace("num_inference_steps=", "steps=").split())
        return label if len(label) <= _NAME_CHARACTERS else f"{label[: _NAME_CHARACTERS - 3]}..."


def sort_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Sorts jobs so that the models change least often, then the texts; otherwise their order stays."""
    ranks: list[dict[str, int]] = [{} for _ in range(LEVELS)]
    for job in jobs:
        for rank, level in zip(ranks, job.levels, strict=True):
            rank.setdefault(level, len(rank))

    def order(job: Job) -> tuple[int, ...]:
        return tuple(rank[level] for rank, level in zip(ranks, job.levels, strict=True))

    return sorted(jobs, key=order)


def wrong_jobs(count: int) -> str:
    """Returns how many jobs of a sweep are wrong, as the end of a command says it."""
    return f"{count} of the sweep's jobs {'is' if count == 1 else 'are'} wrong, as said above"


def common_reason(jobs: Sequence[Job]) -> str | None:
    """Returns why all of these jobs are wrong requests, where it is the same of all; None otherwise."""
    errors = [job.error for job in jobs if job.status is not JobStatus.DUPLICATE]
    reasons = {str(error) for error in errors}
    return reasons.pop() if all(map(is_wrong_request, errors)) and len(reasons) == 1 else None
