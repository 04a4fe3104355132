"""What tracking a run costs, in CPU time: in the process that makes pictures, and in the worker beside it.

    python tests/benchmarks/tracking_cost.py [RUNS]

Compared with the same calls made one after the other with MLflow's client, as one would write them down. Loading, the
import of MLflow and the opening of the store come first and are left out, except in the line that is about them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from diffuse import tracking
from diffuse.config.compose import compose_config
from diffuse.record.values import flatten, resolved_values
from diffuse.schema import TrackingConfig
from diffuse.tracking import mlflow_store, process
from diffuse.tracking.store import Store

STEPS = 20


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    params = flatten(resolved_values(compose_config(["seed=1", "prompt=a red apple"])))
    texts = {"record.json": "x" * 9000, "config.yaml": "x" * 3000, "overrides.yaml": "- seed=1\n"}
    metrics = {f"time/{name}_s": 0.1 for name in ("load", "encode", "denoise", "decode", "total")} | {
        "memory/peak_gib": 0.0,
        "memory/rss_peak_gib": 0.5,
    }
    tags = {"diffuse.version": "1", "diffuse.weights": "tiny@" + "0" * 64, "diffuse.sweep": "0" * 64}
    weights = {"source": "/tiny", "revision": None, "variant": None, "sha256": "0" * 64}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = folder / "picture.png"
        Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(picture)

        def one(tracker: tracking.Tracker) -> None:
            run = tracker.start("run", params, tags, texts, weights=weights)
            run.log_media(picture)
            run.log_text("record.json", texts["record.json"])
            run.set_tags({"diffuse.pixels_sha256": "0" * 64})
            run.log_steps([0.01] * STEPS)
            run.log_metrics(metrics)
            run.finish()

        cfg = TrackingConfig(name="mlflow", uri=f"sqlite:///{folder}/mlflow.db")
        first = tracking.open_tracker(cfg)
        one(first)
        assert first.close() == []
        worker = psutil.Process(process.worker(Store.from_config(cfg)).pid)
        print(f"start, import of MLflow and a fresh store: {_cpu(worker):.2f} s in the worker")

        before, own = _cpu(worker), time.process_time()
        tracker = tracking.open_tracker(cfg)
        for _ in range(runs):
            one(tracker)
        own = time.process_time() - own
        began = time.perf_counter()
        assert tracker.close() == []
        waited = time.perf_counter() - began
        spent = _cpu(worker) - before
        print(
            f"{runs} runs, CPU a run: {own / runs * 1e3:.2f} ms beside the picture, "
            f"{spent / runs * 1e3:.1f} ms in the worker"
        )
        print(f"close() waited {waited:.2f} s for runs that took no time")

        client = mlflow_store.open_client(cfg.uri or "")
        experiment = client.get_experiment_by_name(cfg.experiment).experiment_id
        _naive(client, experiment, params, tags, texts, metrics, picture)  # what is done once is done
        own = time.process_time()
        for _ in range(runs):
            _naive(client, experiment, params, tags, texts, metrics, picture)
        print(f"one call after the other: {(time.process_time() - own) / runs * 1e3:.1f} ms")


def _naive(client: Any, experiment: str, params: Any, tags: Any, texts: Any, metrics: Any, picture: Path) -> None:
    run = client.create_run(experiment).info.run_id
    for key, value in params.items():
        client.log_param(run, key, value)
    for key, value in tags.items():
        client.set_tag(run, key, value)
    for key, value in texts.items():
        client.log_text(run, value, key)
    for key, value in metrics.items():
        client.log_metric(run, key, value)
    for step in range(STEPS):
        client.log_metric(run, "time/step_s", 0.01, step=step)
    client.log_artifact(run, str(picture), "media")
    with Image.open(picture) as image:
        client.log_image(run, image.convert("RGB"), key="image", step=0)
    client.set_terminated(run)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
