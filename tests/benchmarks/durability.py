"""What it costs that the end of a run survives a loss of power, as part of a picture of half a second.

    python tests/benchmarks/durability.py [FOLDER] [RUNS]

Times what a run writes at its end, the picture and its file in the journal, with `fsync` and with nothing in its place.
Compare on the disk that pictures are saved to: a folder in memory costs nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from diffuse.media.files import write_new_file
from diffuse.schema import TrackingConfig
from diffuse.tracking import journal
from diffuse.tracking.store import Store

PICTURE_S = 0.5
PICTURE = os.urandom(400_000)  # about what a PNG of 512 x 512 has
EVENT = {"texts": {"record.json": "x" * 9000}}


def seconds(folder: Path, spool: journal.Spool) -> tuple[float, float]:
    """Returns the seconds for the picture, and for the journal, of one run."""
    entry = spool.entry()
    entry.append({"begin": 1})
    start = time.perf_counter()
    write_new_file(PICTURE, folder, "picture", "png")
    middle = time.perf_counter()
    entry.append(EVENT)
    entry.append({"end": "FINISHED"})
    return middle - start, time.perf_counter() - middle


def main() -> None:
    parent = sys.argv[1] if len(sys.argv) > 1 else None
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    fsync = os.fsync
    with tempfile.TemporaryDirectory(dir=parent) as name:
        spool = journal.Spool(Store.from_config(TrackingConfig(uri=f"sqlite:///{name}/mlflow.db")))
        times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for number in range(2 * runs):
            is_kept = bool(number % 2)  # in turn, so that both see the same machine
            os.fsync = fsync if is_kept else lambda descriptor: None  # type: ignore[assignment]
            times[is_kept].append(seconds(Path(name), spool))
        os.fsync = fsync
        for index, part in enumerate(("picture", "journal")):
            kept, without = (statistics.median(each[index] for each in times[is_kept]) for is_kept in (True, False))
            share = (kept - without) / PICTURE_S
            print(f"{part}: {1000 * kept:.2f} ms, {1000 * without:.2f} ms without; {share:.2%} of {PICTURE_S} s")


if __name__ == "__main__":
    main()
