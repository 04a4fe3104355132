"""The progress of a sweep for the user: the saved paths, a bar for the sweep and one for the batch, a last line."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffuse.sampling.results import Step
from diffuse.sweep.callbacks import SweepCallbacks
from diffuse.sweep.job import Job, JobStatus
from diffuse.terminal import print_path, say

_TITLE_CHARACTERS = 24


class SweepProgress(SweepCallbacks):
    """Prints the paths of each job on standard output, in the order of the command line.

    On a terminal, it shows on standard error how many jobs are done, failed and left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Job] = []
        self.count: Counter[JobStatus | None] = Counter()
        self.started_at = time.monotonic()
        self._printed = 0  # jobs whose paths are printed
        self._bar: Any = None
        self._sweep: Any = None
        self._batch: Any = None

    def on_jobs(self, jobs: Sequence[Job]) -> None:
        """See `SweepCallbacks`."""
        self.jobs += jobs
        if self._bar is None and sys.stderr.isatty():
            self._show()
        self._update()

    def on_batch(self, jobs: Sequence[Job], prompt: str) -> None:
        """See `SweepCallbacks`."""
        if self._bar is not None:
            title = " ".join(prompt.split())
            short = title if len(title) <= _TITLE_CHARACTERS else f"{title[: _TITLE_CHARACTERS - 1]}…"
            size = f" x {len(jobs)}" if len(jobs) > 1 else ""
            self._bar.reset(self._batch, description=f"{short}{size}", total=None, state="")

    def on_step(self, step: Step) -> None:
        """See `SweepCallbacks`."""
        if self._bar is not None:
            self._bar.update(self._batch, completed=step.index + 1, total=step.total)

    def on_job_end(self, job: Job) -> None:
        """See `SweepCallbacks`."""
        self.count[job.status] += 1
        while self._printed < len(self.jobs) and self.jobs[self._printed].status:
            for path in self.jobs[self._printed].paths:
                print_path(path)
            self._printed += 1
        self._update()

    def stop(self) -> None:
        """Removes the bars."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, line: str) -> None:
        """Prints a line for the user, below the bars."""
        self.stop()
        say(line)

    def warn(self, warnings: Sequence[str]) -> None:
        """Prints `warnings`, and those of the jobs, each once; before them, what was chosen for a budget."""
        for note in self.notes.values():
            self.say(note)
        self.notes.clear()
        for warning in [*self.warnings, *warnings]:
            self.say(f"warning: {warning}")
        self.warnings.clear()

    @property
    def has_new_pictures(self) -> bool:
        """True if this command has made pictures."""
        return self.count[JobStatus.MADE] > 0

    @property
    def finished_jobs(self) -> int:
        """The number of jobs that have their pictures."""
        return self.count[JobStatus.MADE] + self.count[JobStatus.EXISTING]

    @property
    def metrics(self) -> dict[str, float]:
        """The number of jobs by status, and the seconds since the start."""
        statuses = (JobStatus.MADE, JobStatus.EXISTING, JobStatus.FAILED)
        counts = {f"jobs/{status}": float(self.count[status]) for status in statuses}
        return {**counts, "time/sweep_s": time.monotonic() - self.started_at}

    @property
    def failed(self) -> list[Job]:
        """The jobs that failed."""
        return [job for job in self.jobs if job.status is JobStatus.FAILED]

    def summary(self, report: Path | None = None) -> str:
        """Returns how many jobs were made, existed, failed and are left, in one line."""
        count = self.count
        total = len(self.jobs) - count[JobStatus.DUPLICATE]
        parts = [
            f"{count[JobStatus.MADE]} made",
            f"{count[JobStatus.EXISTING]} were there",
            f"{count[JobStatus.FAILED]} failed",
        ]
        if left := len(self.jobs) - count.total() + count[JobStatus.LEFT]:
            parts.append(f"{left} left to do")
        if count[JobStatus.DUPLICATE]:
            parts.append(f"{count[JobStatus.DUPLICATE]} given twice")
        where = "" if report is None else f"; report {report}"
        jobs = "1 job" if total == 1 else f"{total} jobs"
        return f"{jobs}: {', '.join(parts)}, in {time.monotonic() - self.started_at:.1f} s{where}"

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._sweep = self._bar.add_task("sweep", total=len(self.jobs), state="")
        self._batch = self._bar.add_task("", total=None, state="")
        self._bar.start()

    def _update(self) -> None:
        if self._bar is None:
            return
        count = self.count
        counts = ((count[JobStatus.FAILED], "failed"), (count[JobStatus.EXISTING], "there"))
        state = ", ".join(f"{number} {text}" for number, text in counts if number)
        completed = self.finished_jobs + count[JobStatus.FAILED]
        self._bar.update(
            self._sweep, completed=completed, total=len(self.jobs) - count[JobStatus.DUPLICATE], state=state
        )
