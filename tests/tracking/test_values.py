"""Values of a run within the limits of MLflow."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tracked_runs import runs, settings

from diffuse import tracking
from diffuse.config.run_tags import check_run_tags
from diffuse.tracking import values

WEIGHTS = {"source": "owner/model", "revision": "a" * 40, "variant": None, "sha256": "b" * 64}


def test_values_are_within_the_limits_of_mlflow(store: Path) -> None:
    tracker = tracking.open_tracker(settings(store))
    params = {"prompt": "x" * 7000, "on": True, "none": None, "list": [1, 2], "odd (key)": "é\udcff"}
    many = {f"p{number}": number for number in range(250)}
    run = tracker.start("run", params | many, {"long": "y" * 9000}, {}, weights=WEIGHTS)
    run.log_metrics(
        {"quality": math.nan, "most": math.inf, "no": None} | {f"m{number}": number for number in range(1200)}
    )
    run.finish()
    assert tracker.close() == []
    (stored,) = runs(store)
    data = stored.data
    assert data.params["prompt"] == "x" * 6000
    expected = {"on": "true", "none": "null", "list": "[1, 2]", "odd _key_": "é\\udcff", "p249": "249"}
    assert data.params.items() >= expected.items()
    assert data.tags["long"] == "y" * 8000
    assert math.isnan(data.metrics["quality"]) and data.metrics["most"] > 1e300 and data.metrics["m1199"] == 1199
    assert len(data.metrics) == 1202 and len(data.params) == 255
    (weights,) = stored.inputs.dataset_inputs
    assert (weights.dataset.name, weights.dataset.digest, weights.dataset.source_type) == (
        "owner/model",
        "b" * 36,
        "hf",
    )
    assert json.loads(weights.dataset.source) == WEIGHTS


def test_a_tag_that_is_accepted_is_kept_whole() -> None:
    tags = {"a": "x" * 8000}
    check_run_tags(tags, None)
    assert values.tag_values(tags) == tags


def test_local_weights_are_named_by_their_folder() -> None:
    dataset = values.dataset_input({**WEIGHTS, "source": "/models/\udcff"}).dataset
    assert (dataset.name, dataset.source_type) == ("\\udcff", "local")


def test_batches_are_limited_by_number_and_size() -> None:
    assert [len(batch) for batch in values.batches([("key", 1)] * 250, 100)] == [100, 100, 50]
    assert [len(batch) for batch in values.batches([("key", "x" * 100_000)] * 5, 100)] == [2, 2, 1]
