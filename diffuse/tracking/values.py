"""Names, texts and numbers of a run within the limits of MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuse.config.run_tags import VALUE_CHARACTERS

_PARAMETER_CHARACTERS = 6000  # MLflow's own limits
_KEY_CHARACTERS = 250
_DIGEST_CHARACTERS = 36
BATCH_PARAMETERS = 100
BATCH_METRICS = 800  # with 100 parameters and 100 tags, the 1000 entries of one call
_BATCH_BYTES = 300_000

Metric = tuple[str, float, int, int]  # name, value, time in milliseconds, step


def tag_values(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns tags as MLflow takes them."""
    return {key: utf8(str(value))[:VALUE_CHARACTERS] for key, value in tags.items()}


def param_values(params: Mapping[str, Any]) -> dict[str, str]:
    """Returns parameters as MLflow takes them: texts as they are, other values as JSON has them."""
    return {_key(key): _value(value)[:_PARAMETER_CHARACTERS] for key, value in params.items()}


def metric_values(metrics: Iterable[Metric]) -> list[Metric]:
    """Returns metrics as MLflow takes them."""
    return [(_key(key), value, time, step) for key, value, time, step in metrics]


def dataset_input(weights: Mapping[str, Any]) -> Any:
    """Returns weights as MLflow records a dataset: their source with the whole digest, and a shortened one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = str(weights["source"])
    is_local = "/" in source and Path(source).is_absolute()
    dataset = Dataset(
        name=utf8(Path(source).name if is_local else source)[:_KEY_CHARACTERS],
        digest=str(weights["sha256"])[:_DIGEST_CHARACTERS],
        source_type="local" if is_local else "hf",
        source=utf8(json.dumps(dict(weights))),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "weights")])


def utf8(text: str) -> str:
    r"""Returns a text that every store takes.

    Python holds bytes of a path that are not UTF-8 as lone surrogates; they become `\udc..`.
    """
    return text.encode(errors="backslashreplace").decode()


def batches(items: Iterable[tuple[Any, ...]], limit: int) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Yields `items` in batches of at most `limit`, each within the size of one request."""
    batch: list[tuple[Any, ...]] = []
    size = 0
    for item in items:
        length = len(json.dumps(item))
        if batch and (len(batch) == limit or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def _key(key: str) -> str:
    return re.sub(r"[^\w./ -]", "_", key, flags=re.ASCII)[:_KEY_CHARACTERS]


def _value(value: Any) -> str:
    return utf8(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
