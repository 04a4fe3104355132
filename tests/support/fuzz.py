# ruff: noqa: C416
"""Fuzzes what reads files and words from outside, for as long as it is told to: `python tests/support/fuzz.py --help`.

Input `n` of a seed is always the same: what is found is found again by `--target T --seed S --first N --cases 1`.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import tempfile
import time
import traceback
from itertools import count
from pathlib import Path
from random import Random

from fuzz_targets import TARGETS

_SECONDS = 60  # an input that takes longer hangs
_MOST_GIB = 4.0  # a picture of the largest size that is read takes 2


def fuzz(name: str, seed: int, first: int, cases: int | None, seconds: float | None, most_findings: int = 20) -> int:
    """Tries inputs of one target, and prints what is found. Returns how many inputs were findings."""
    findings, started, tried, kinds = 0, time.monotonic(), 0, set()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        target = TARGETS[name](folder)
        before = {path for path in Path(temporary).rglob("*")}
        for number in count(first):
            if (cases is not None and tried >= cases) or (seconds is not None and time.monotonic() - started > seconds):
                break
            tried += 1
            faulthandler.dump_traceback_later(_SECONDS, exit=True)
            print(f"{name} {seed} {number}", end="\r", file=sys.stderr, flush=True)  # which it was, should it hang
            try:
                target.check(Random(f"{name} {seed} {number}"))
                left = {path for path in Path(temporary).rglob("*")} - before
                assert not left, f"left behind: {sorted(map(str, left))}"
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} {place.filename}:{place.lineno}"
                if kind not in kinds:
                    kinds.add(kind)
                    print(f"\n=== --target {name} --seed {seed} --first {number} --cases 1")
                    traceback.print_exc(file=sys.stdout)
                findings += 1
                if findings >= most_findings:
                    break
            finally:
                faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    took = time.monotonic() - started
    print(f"{name}: {tried} inputs in {took:.0f} s, {findings} findings, at most {peak:.2f} GiB")
    return findings + (peak > _MOST_GIB)


def main() -> None:
    """Runs the targets, one after another; ends with 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", metavar="NAME[=CASES]", help="all of them unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--cases", type=int, help="inputs of each target")
    parser.add_argument("--minutes", type=float, help="for each target")
    given = parser.parse_args()
    seconds = None if given.minutes is None else given.minutes * 60
    targets = {}
    for target in given.target or TARGETS:
        name, _, cases = target.partition("=")
        targets[name] = int(cases) if cases else given.cases
        if name not in TARGETS:
            parser.error(f"{name}: no such target; there are {', '.join(TARGETS)}")
        if targets[name] is None and seconds is None:
            parser.error("give --cases or --minutes")
    found = [fuzz(name, given.seed, given.first, cases, seconds) for name, cases in targets.items()]
    sys.exit(1 if any(found) else 0)


if __name__ == "__main__":
    main()
