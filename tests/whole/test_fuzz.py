"""Files and words from outside that were changed at random: no traceback, no hang, no file left, memory bounded.

The same inputs each time. `python tests/support/fuzz.py --minutes 10` looks for new ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = {"pictures": 1500, "records": 60, "checkpoints": 15, "weights": 2000, "overrides": 200}
PROGRAM = Path(__file__).parents[1] / "support" / "fuzz.py"


@pytest.mark.parametrize("target", CASES)
def test_what_is_read_from_outside_ends_in_a_value_or_a_refusal(target: str) -> None:
    arguments = ["--target", target, "--seed", "0", "--cases", str(CASES[target])]
    done = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "0 findings" in done.stdout
