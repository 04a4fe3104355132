"""A sweep in one process, against the same pictures by single runs and by a plain loop over a diffusers pipeline.

python tests/benchmarks/sweep.py                  16 seeds x 5, 10, 20 steps of the tiny checkpoint, two threads
python tests/benchmarks/sweep.py --threads 1      one thread, which leaves the others to what tracks
python tests/benchmarks/sweep.py --repetitions 3  the median of more
python tests/benchmarks/sweep.py --steps 100 --kinds "nothing saved"     pictures of half a second and more

Each is a process of its own, from its start to its end, on a copy of an empty MLflow store, and comes after a run that
is not timed. The loop keeps one pipeline and logs with MLflow what a run of diffuse logs: parameters, tags, metrics by
step, the file, the image with its slider, three texts. Of the single runs one of each number of steps is timed, and
counts sixteen times. What tracking and saving cost is the sweep's time over that of the same sweep which forgets its
pictures, with `tracking=none`. Computing alone are the same batches, without a start or weights to read. Seconds are of
the clock, and of all processors.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffuse

TINY = Path(diffuse.__file__).parent / "tiny" / "checkpoint"
SEEDS = range(16)
PROMPT, SCALE = "a rocket on a blue background", 3.0
KINDS = ("sweep", "sweep, untracked", "nothing saved", "computing alone", "single runs", "diffusers' loop")
_ADOPT = 36  # Linux's PR_SET_CHILD_SUBREAPER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", default="full_gpu", help="memory profile; the loop batches guidance as this one")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which to time; the sweep always is")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--computing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--forgetting", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options)
    elif options.forgetting:
        forgetting(options)
    elif options.computing:
        computing(options)
    else:
        compare(options)


def axes(options: argparse.Namespace) -> tuple[str, ...]:
    return "-m", f"seed=range(0,{len(SEEDS)})", f"num_inference_steps={','.join(map(str, options.steps))}"


def command(options: argparse.Namespace, *overrides: str) -> list[str]:
    common = (
        "hardware=cpu",
        f"hardware.threads={options.threads}",
        f"memory_profile={options.profile}",
        f"prompt={PROMPT}",
    )
    return [sys.executable, "-m", "diffuse", *common, "report.make=false", *overrides]


def compare(options: argparse.Namespace) -> None:
    ctypes.CDLL(None).prctl(_ADOPT, 1)
    steps = ["--steps", *map(str, options.steps)]
    this = [sys.executable, __file__, f"--threads={options.threads}", f"--profile={options.profile}", *steps]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty_store(folder / "empty.db")
        kinds: dict[str, Callable[[], tuple[float, float]]] = {
            "sweep": lambda: timed(command(options, *axes(options)), folder),
            "sweep, untracked": lambda: timed(command(options, *axes(options), "tracking=none"), folder),
            "nothing saved": lambda: timed([*this, "--forgetting"], folder),
            "computing alone": lambda: timed([*this, "--computing"], folder),
            "single runs": lambda: singles(options, folder),
            "diffusers' loop": lambda: timed([*this, "--peer"], folder),
        }
        kinds = {kind: run for kind, run in kinds.items() if kind == "sweep" or kind in options.kinds}
        taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(options.repetitions):
            for kind, run in kinds.items():
                timed(command(options, "seed=0", "num_inference_steps=5"), folder)  # the first after a pause is slow
                taken[kind].append(run())
    print(f"{len(SEEDS) * len(options.steps)} pictures, {options.threads} thread(s), {options.profile}")
    print(f"{'':18}{'s':>8}{'CPU s':>8}{'ratio':>8}{'CPU':>8}")
    for kind, times in taken.items():
        ratios = [
            statistics.median(other[i] / ours[i] for ours, other in zip(taken["sweep"], times, strict=True))
            for i in (0, 1)
        ]
        medians = [statistics.median(each[i] for each in times) for i in (0, 1)]
        print(f"{kind:18}{medians[0]:8.1f}{medians[1]:8.1f}{ratios[0]:8.2f}{ratios[1]:8.2f}")


def timed(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds by the clock and of processors, those of the processes that it starts too; or what it says itself."""
    place = Path(tempfile.mkdtemp(dir=folder))
    (place / "outputs").mkdir()
    shutil.copy(folder / "empty.db", place / "outputs" / "mlflow.db")
    begun, before = time.perf_counter(), os.times()
    done = subprocess.run(arguments, cwd=place, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - begun
    with suppress(ChildProcessError):
        while True:  # what the command has left behind, which is ours now
            os.wait()
    after = os.times()
    if done.stdout.startswith("took "):
        wall, cpu = map(float, done.stdout.split()[1:])
        return wall, cpu
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def singles(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    each = [timed(command(options, "seed=0", f"num_inference_steps={steps}"), folder) for steps in options.steps]
    return sum(wall for wall, _ in each) * len(SEEDS), sum(cpu for _, cpu in each) * len(SEEDS)


def empty_store(file: Path) -> None:
    import mlflow

    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()


def forgetting(options: argparse.Namespace) -> None:
    """The sweep as it would be if it cost nothing to save a picture."""
    from diffuse.cli import main as cli
    from diffuse.sweep.job import Job, JobStatus
    from diffuse.sweep.runner import JobRunner

    def forget(self: JobRunner, job: Job, *rest: Any) -> None:
        self.end_job(job, JobStatus.MADE)

    setattr(JobRunner, "_save", forget)  # noqa: B010
    cli.main([*command(options, *axes(options), "tracking=none")[3:]])


def computing(options: argparse.Namespace) -> None:
    """The sweep's pictures by the pipeline alone, in its batches: nothing is saved or recorded."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command does

    from diffuse.config.compose import compose_config
    from diffuse.config.request import draft_requests
    from diffuse.run.prepare import prepare
    from diffuse.run.run import compute

    prepared = []
    for steps in options.steps:
        for seed in SEEDS:
            overrides = [*command(options)[3:], f"seed={seed}", f"num_inference_steps={steps}"]
            cfg = compose_config(overrides)
            prepared.append(prepare(cfg, draft_requests(cfg)[0]))
    request = prepared[0].request
    size = prepared[0].opened.pipeline.memory.batch_size(request.width, request.height)
    compute(prepared[:1])  # reads the weights
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(prepared), size):
        compute(prepared[start : start + size])
    print("took", time.perf_counter() - wall, time.process_time() - cpu)


def peer(options: argparse.Namespace) -> None:
    """What one would write by hand."""
    import mlflow
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pipeline = StableDiffusionPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    mlflow.set_tracking_uri("sqlite:///outputs/mlflow.db")
    mlflow.set_experiment("diffuse")
    Path("pictures").mkdir()
    for steps in options.steps:
        for seed in SEEDS:
            with mlflow.start_run(run_name=f"{seed}_{steps}"):
                one(pipeline, seed, steps, mlflow, torch)


def one(pipeline: Any, seed: int, steps: int, mlflow: Any, torch: Any) -> None:
    params = {"prompt": PROMPT, "seed": seed, "num_inference_steps": steps, "guidance_scale": SCALE}
    params |= {f"config.{number}": number for number in range(100)}  # a run of diffuse has as many
    mlflow.log_params(params)
    mlflow.set_tags({"diffuse.sweep": "sweep", "diffuse.version": "0", "diffuse.weights": "tiny"})
    record = json.dumps(params, indent=2)
    for name in ("config.yaml", "overrides.yaml", "record.json"):
        mlflow.log_text(record, name)
    seconds: list[float] = []
    begun = time.perf_counter()

    def on_step(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        seconds.append(time.perf_counter() - begun)
        return kwargs

    picture = pipeline(
        PROMPT,
        num_inference_steps=steps,
        guidance_scale=SCALE,
        generator=torch.Generator("cpu").manual_seed(seed),
        callback_on_step_end=on_step,
    ).images[0]
    path = Path("pictures", f"{seed}_{steps}.png")
    picture.save(path)
    mlflow.log_artifact(str(path), "media")
    mlflow.log_image(picture, key="image", step=0)
    for step, value in enumerate(seconds):
        mlflow.log_metric("time/step_s", value, step=step)
    mlflow.log_metrics({f"time/{name}": seconds[-1] for name in ("total_s", "encode_s", "denoise_s", "decode_s")})


if __name__ == "__main__":
    main()
