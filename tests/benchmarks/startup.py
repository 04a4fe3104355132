"""What the command costs before it computes anything, in CPU seconds of fresh processes.

    python tests/benchmarks/startup.py [--rounds 5]

`diffuse --help`, a misspelled option and a wrong value, each against `import torch`; and the seconds that the default
picture takes to make, as its own record says, against `import torch, mlflow`. Processes take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIFFUSE = [sys.executable, "-m", "diffuse"]
ANSWERS = {
    "diffuse --help": [*DIFFUSE, "--help"],
    "a misspelled option": [*DIFFUSE, "promt=x"],
    "a wrong value": [*DIFFUSE, "seed=abc"],
}


def run(command: list[str]) -> tuple[float, float, str]:
    """CPU seconds, wall seconds and standard output of one process."""
    before, start = os.times(), time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - start, result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    torch = [sys.executable, "-c", "import torch"]
    costs: dict[str, list[float]] = {name: [] for name in ANSWERS}
    peer: list[float] = []
    for _ in range(rounds):
        peer.append(run(torch)[0])
        for name, command in ANSWERS.items():
            costs[name].append(run(command)[0])
    reference = statistics.median(peer)
    print(f"import torch: {reference:.2f} s of CPU, median of {rounds}")
    for name, values in costs.items():
        print(f"{name}: {statistics.median(values):.2f} s, ratio {statistics.median(values) / reference:.2f}")

    made, imports = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            imports.append(run([sys.executable, "-c", "import torch, mlflow"])[1])
            path = run([*DIFFUSE, "seed=1", f"output.dir={folder}/{i}", "tracking=none", "hardware=cpu"])[2].strip()
            from diffuse import media

            record = media.read_record(Path(path))
            made.append(float(json.loads(json.dumps(record))["timings"]["total_s"]))
    seconds, reference = statistics.median(made), statistics.median(imports)
    print(
        f"the default picture: {seconds:.2f} s to make; import torch, mlflow: {reference:.2f} s; ratio {seconds / reference:.2f}"
    )


if __name__ == "__main__":
    main()
