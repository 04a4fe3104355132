"""What the command costs beside what it computes, each figure from fresh processes that take turns.

    python tests/benchmarks/startup.py [--rounds 5] [--threads N]

First the answers that need no model, in processor time, against `import torch`. Then the default picture, 64 x 64 at 20
steps: the seconds it takes to make, weights included, as the command says them when it is done, against the seconds
that Python takes to import torch and MLflow.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

DIFFUSE = [sys.executable, "-m", "diffuse"]
ANSWERS = {
    "diffuse --help": [*DIFFUSE, "--help"],
    "a misspelled option": [*DIFFUSE, "promt=x"],
    "a wrong value": [*DIFFUSE, "seed=abc"],
}


def processor_seconds(command: list[str]) -> float:
    """Of one process, and of those it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def importing(modules: str) -> float:
    """Seconds that Python takes from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.perf_counter() - start


def picture(threads: int | None) -> float:
    """Seconds that the default picture took to make."""
    with tempfile.TemporaryDirectory() as folder:
        number = [] if threads is None else [f"hardware.threads={threads}"]
        command = [*DIFFUSE, "seed=1", "hardware=cpu", "tracking=none", f"output.dir={folder}", *number]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"1 picture in ([0-9.]+) s", said)
    assert found, said
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="for the picture; as many as torch takes by itself where not given")
    options = parser.parse_args()
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)

    commands = {"import torch": [sys.executable, "-c", "import torch"]} | ANSWERS
    costs: dict[str, list[float]] = {name: [] for name in commands}
    made, imports = [], []
    for _ in range(options.rounds):
        for name, command in commands.items():
            costs[name].append(processor_seconds(command))
        made.append(picture(options.threads))
        imports.append(importing("torch, mlflow"))

    print(f"{'':34} {'seconds':>9} {'ratio':>6}")
    rows = {name: (values, costs["import torch"]) for name, values in costs.items()}
    rows |= {"import torch, mlflow": (imports, imports), "the default picture": (made, imports)}
    for name, (values, reference) in rows.items():
        ratio = statistics.median(mine / its for mine, its in zip(values, reference, strict=True))
        print(f"{name:34} {statistics.median(values):9.2f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
