"""Callbacks of a sweep, by which its progress reaches the user."""

from __future__ import annotations

from collections.abc import Sequence

from diffuse.sampling.results import Step
from diffuse.sweep.job import Job


class SweepCallbacks:
    """Receives the events of a sweep. The methods do nothing here; subclasses override them."""

    def __init__(self) -> None:
        self.warnings: dict[str, None] = {}  # each once, in their order
        self.notes: dict[tuple[str, ...], str] = {}  # by the levers that were chosen for a budget: the first such line

    def on_jobs(self, jobs: Sequence[Job]) -> None:
        """Receives more jobs of the sweep, in the order of the command line."""

    def on_batch(self, jobs: Sequence[Job], prompt: str) -> None:
        """Receives the jobs that are made next, together."""

    def on_step(self, step: Step) -> None:
        """Receives a step of theirs that has ended."""

    def on_job_end(self, job: Job) -> None:
        """Receives a job whose status is final. Several threads call this, one at a time."""
