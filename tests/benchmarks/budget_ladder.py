"""Ten budgets from the least that works to full, for each kind of picture: what is chosen, predicted and measured.

    python tests/benchmarks/budget_ladder.py [tiny sd21 sdxl refined inpaint]

The device is a share of the CPU's memory, its bytes are those of real storages, and runs are strict. Every rung must
keep its budget and have the pixels of everything resident; the first that does not ends it. Figures are in MiB.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from budget_ladder import KINDS, Ladder

MIB = 1 << 20


def main() -> None:
    print(f"{'':8} {'budget':>8} {'predicted':>9} {'measured':>9}  levers")
    with tempfile.TemporaryDirectory() as folder:
        for kind in sys.argv[1:] or KINDS:
            ladder = Ladder(kind, Path(folder))
            for rung in ladder.climb(range(11)):
                rung.check(ladder.expected)
                figures = (rung.budget / MIB, rung.choice.device_bytes / MIB, rung.peak / MIB)
                print(f"{kind:8} {figures[0]:8.3f} {figures[1]:9.3f} {figures[2]:9.3f}  {' '.join(rung.choice.levers)}")
                sys.stdout.flush()
            print(f"{kind:8} {ladder.ways} different choices; the pixels are the same to the bit")


if __name__ == "__main__":
    main()
