"""What a user sees of a sweep: a bar for all of it and one for what is being made; at the end, a line."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffuse.sampling.results import Step
from diffuse.sweep.jobs import DOUBLE, FAILED, LEFT, MADE, THERE, Job, Told
from diffuse.terminal import print_path, say

_TITLE_CHARACTERS = 24


class SweepProgress(Told):
    """Prints the paths of each job on standard output, in the order in which the jobs were typed; on a terminal, shows
    what is done, has failed and is left on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Job] = []
        self.count: Counter[str] = Counter()  # by status
        self.begin = time.monotonic()
        self._printed = 0  # of the jobs, those whose paths are
        self._bar: Any = None
        self._sweep: Any = None
        self._batch: Any = None

    def planned(self, jobs: Sequence[Job]) -> None:
        """See `Told`."""
        self.jobs += jobs
        if self._bar is None and sys.stderr.isatty():
            self._show()
        self._update()

    def begun(self, jobs: Sequence[Job], title: str) -> None:
        """See `Told`."""
        if self._bar is not None:
            title = " ".join(title.split())
            short = title if len(title) <= _TITLE_CHARACTERS else f"{title[: _TITLE_CHARACTERS - 1]}…"
            together = f" x {len(jobs)}" if len(jobs) > 1 else ""
            self._bar.reset(self._batch, description=f"{short}{together}", total=None, state="")

    def step(self, step: Step) -> None:
        """See `Told`."""
        if self._bar is not None:
            self._bar.update(self._batch, completed=step.index + 1, total=step.total)

    def ended(self, job: Job) -> None:
        """See `Told`."""
        self.count[job.status] += 1
        while self._printed < len(self.jobs) and self.jobs[self._printed].status:
            for path in self.jobs[self._printed].paths:
                print_path(path)
            self._printed += 1
        self._update()

    def stop(self) -> None:
        """Takes the bars away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, line: str) -> None:
        """A line for the user, below all that was drawn."""
        self.stop()
        say(line)

    def warn(self, warnings: Sequence[str]) -> None:
        """`warnings`, and those of the jobs, each of them once."""
        for warning in [*self.warnings, *warnings]:
            self.say(f"warning: {warning}")
        self.warnings.clear()

    @property
    def changed(self) -> bool:
        """Whether anything was made, or failed after it was begun."""
        return self.count[MADE] > 0

    @property
    def done(self) -> int:
        """How many jobs have their pictures."""
        return self.count[MADE] + self.count[THERE]

    @property
    def metrics(self) -> dict[str, float]:
        """How many jobs there are of each kind, and the seconds that they took."""
        counts = {f"jobs/{status}": float(self.count[status]) for status in (MADE, THERE, FAILED)}
        return {**counts, "time/sweep_s": time.monotonic() - self.begin}

    @property
    def failed(self) -> list[Job]:
        return [job for job in self.jobs if job.status == FAILED]

    def summary(self, report: Path | None = None) -> str:
        """What became of the jobs, in one line."""
        count = self.count
        total = len(self.jobs) - count[DOUBLE]
        parts = [f"{count[MADE]} made", f"{count[THERE]} were there", f"{count[FAILED]} failed"]
        if left := len(self.jobs) - count.total() + count[LEFT]:
            parts.append(f"{left} left to do")
        if count[DOUBLE]:
            parts.append(f"{count[DOUBLE]} given twice")
        where = "" if report is None else f"; report {report}"
        jobs = "1 job" if total == 1 else f"{total} jobs"
        return f"{jobs}: {', '.join(parts)}, in {time.monotonic() - self.begin:.1f} s{where}"

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
        done = count[MADE] + count[THERE] + count[FAILED]
        state = ", ".join(
            f"{count[kind]} {said}" for kind, said in ((FAILED, "failed"), (THERE, "there")) if count[kind]
        )
        self._bar.update(self._sweep, completed=done, total=len(self.jobs) - count[DOUBLE], state=state)
