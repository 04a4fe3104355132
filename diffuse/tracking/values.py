"""What a run logs as MLflow takes it: names, texts and numbers within its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_PARAMETER_CHARACTERS = 6000  # MLflow's own limits
_TAG_CHARACTERS = 5000
_KEY_CHARACTERS = 250
_DIGEST_CHARACTERS = 36
BATCH_PARAMETERS = 100
BATCH_METRICS = 500
_BATCH_BYTES = 300_000

Metric = tuple[str, float, int, int]  # name, value, time in milliseconds, step


def tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow takes them."""
    return {_key(key): text(str(value))[:_TAG_CHARACTERS] for key, value in tags.items()}


def params(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow takes them."""
    return {_key(key): _value(value)[:_PARAMETER_CHARACTERS] for key, value in params.items()}


def metrics(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics as MLflow takes them."""
    return [(_key(key), value, time, step) for key, value, time, step in metrics]


def dataset(weights: Mapping[str, Any]) -> Any:
    """Weights as MLflow records a dataset: their source with the whole digest, and a shortened one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = str(weights["source"])
    local = "/" in source and Path(source).is_absolute()
    read = Dataset(
        name=text(Path(source).name if local else source)[:_KEY_CHARACTERS],
        digest=str(weights["sha256"])[:_DIGEST_CHARACTERS],
        source_type="local" if local else "hf",
        source=text(json.dumps(dict(weights))),
    )
    return DatasetInput(read, [InputTag("mlflow.data.context", "weights")])


def text(text: str) -> str:
    r"""Bytes of a path that are not UTF-8, which Python has as lone surrogates and no store takes, become `\udc..`."""
    return text.encode(errors="backslashreplace").decode()


def batches(items: Iterable[tuple[Any, ...]], most: int) -> Iterator[Sequence[tuple[Any, ...]]]:
    """`items` in batches that MLflow takes: of at most `most`, and within the size of one request."""
    batch: list[tuple[Any, ...]] = []
    size = 0
    for item in items:
        length = len(json.dumps(item))
        if batch and (len(batch) == most or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def _key(key: str) -> str:
    return re.sub(r"[^\w./ -]", "_", key, flags=re.ASCII)[:_KEY_CHARACTERS]


def _value(value: Any) -> str:
    """Text as it is; other values as JSON has them: null, true, 0.5, [1, 2]."""
    return text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
