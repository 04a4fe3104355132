"""How good predictions of memory were: the records of earlier runs have the predicted beside the measured peaks."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffuse.errors import MediaError
from diffuse.media.load import read_record

OUTPUTS = Path("outputs")
_MOST_FILES = 20_000  # that are looked at
_MOST_PICTURES = 200  # the newest of them, whose records are read
_PICTURES = (".png", ".jpg", ".webp", ".tiff")
_PEAKS = {"device": "peak_gib", "main memory": "rss_peak_gib"}


@dataclass(frozen=True)
class Scores:
    """How far predictions were off, as shares of what was measured.

    Attributes:
        runs: that have predictions.
        off: the median and the worst for the device and for main memory, of those that were measured.
    """

    runs: int
    off: dict[str, tuple[float, float]]

    def line(self) -> str:
        """Returns the line for the terminal."""
        parts = [f"{name} off by {median:.1%}, at most {worst:.1%}" for name, (median, worst) in self.off.items()]
        return f"{self.runs} run{'' if self.runs == 1 else 's'}: {'; '.join(parts)}"


def prediction_scores(folder: Path = OUTPUTS, hardware: str | None = None) -> Scores | None:
    """Returns the scores of the newest pictures below a folder; None where none of them has a prediction.

    Args:
        hardware: the name of the device; runs on others do not count.
    """
    runs: set[tuple[tuple[float, float], ...]] = set()  # pictures of one run have the same
    for path in _newest(folder):
        try:
            record = read_record(path)
            memory = record.get("memory")
            if memory and (hardware is None or record["hardware"]["name"] == hardware):
                kinds = memory["predicted"], memory["measured"]
                runs.add(tuple((float(kinds[0][peak]), float(kinds[1][peak])) for peak in _PEAKS.values()))
        except (MediaError, OSError, LookupError, TypeError, ValueError, AttributeError):
            continue  # not ours, or damaged
    off: dict[str, tuple[float, float]] = {}
    for place, name in enumerate(_PEAKS):
        shares = [abs(run[place][0] / run[place][1] - 1) for run in runs if run[place][1] and run[place][0]]
        if shares:
            off[name] = statistics.median(shares), max(shares)
    return Scores(len(runs), off) if off else None


def _newest(folder: Path) -> list[Path]:
    found = []
    for path in _files(folder):
        if path.suffix in _PICTURES:
            try:
                found.append((path.stat().st_mtime, path))
            except OSError:
                continue
    return [path for _, path in sorted(found, reverse=True)[:_MOST_PICTURES]]


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, the first many."""
    count = 0
    for parent, folders, names in os.walk(folder):
        folders.sort(reverse=True)  # those of later dates first
        for name in names:
            yield Path(parent, name)
            count += 1
            if count >= _MOST_FILES:
                return
