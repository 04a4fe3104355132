"""Files and words from outside that were changed at random: no traceback, no hang, no file left, memory bounded.

The same inputs each time. `python tests/support/fuzz.py --minutes 10` looks for new ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CASES = {"pictures": 700, "records": 30, "checkpoints": 10, "weights": 1000, "overrides": 100}
PROGRAM = Path(__file__).parents[1] / "support" / "fuzz.py"


def test_what_is_read_from_outside_ends_in_a_value_or_a_refusal() -> None:
    """In one process, whose memory is that of this alone."""
    arguments = [part for target, cases in CASES.items() for part in ("--target", f"{target}={cases}")]
    done = subprocess.run([sys.executable, PROGRAM, "--seed", "0", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    said = re.findall(r"^(\w+): (\d+) inputs in \d+ s, 0 findings", done.stdout, re.MULTILINE)
    assert {target: int(cases) for target, cases in said} == CASES
