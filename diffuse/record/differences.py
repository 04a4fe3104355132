"""Differences between the records of two runs that may be why their images differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffuse.config.quoting import FILE_LISTS
from diffuse.record.values import flatten, short_text
from diffuse.schema import COMPONENTS, FILE_FIELDS

# Parts of the configuration that change no pixel, or are compared elsewhere in the record.
_NOT_COMPARED = (
    "output",
    "tracking",
    "report",
    "objective",
    "hardware",
    "memory_profile",
    "text_backend",
    "seed",
    "num_images",
    *FILE_FIELDS,
)
_MODELS = ("source", "revision", "name", "download", "fetch_variant", "request_defaults", "min_vram_gib", *COMPONENTS)
_HARDWARE = ("device", "name", "deterministic", "capability", "driver", "cuda", "cudnn", "cpu", "cpu_capability")
_PROFILE = ("half", "on_device", "guidance", "batch_size", "tiled_decode")
_TILES = ("tiled_encode", "vae_tile_size", "vae_tile_overlap")
_STEP_DOWNS = ("tiled_decode", "tiled_encode", "batch_size", "guidance")
_LIBRARIES = ("torch", "numpy", "pillow", "safetensors", "tokenizers", "accelerate", "python")


def record_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the differences between two records, a line each, the likeliest cause first."""
    return [*_weights(then, now), *_settings(then, now), *_code(then, now)]


def weights_differences(then: Any, now: Any, name: str) -> Iterator[str]:
    """Yields a line for each difference between the recorded weights of a model, its components among them."""
    before, after = (part.get("sha256") if isinstance(part, Mapping) else None for part in (then, now))
    if before != after:
        yield f"the {name}: SHA-256 {_digest(before)} then, {_digest(after)} now"
    parts = [_mapping(part, "components") if isinstance(part, Mapping) else {} for part in (then, now)]
    for component in sorted({*parts[0], *parts[1]}):
        yield from weights_differences(parts[0].get(component), parts[1].get(component), f"{component}'s {name}")


def _weights(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    yield from weights_differences(then["weights"], now["weights"], "weights")
    yield from weights_differences(then["weights"].get("refiner"), now["weights"].get("refiner"), "refiner's weights")
    for name in FILE_LISTS:
        files = [_mapping(part, "weights", name) for part in (then, now)]
        for index in sorted({*files[0], *files[1]}):
            before, after = (_value(part, index, "sha256") for part in files)
            if before != after:
                yield f"the file of {name}.{index}: SHA-256 {_digest(before)} then, {_digest(after)} now"
            before, after = (_value(part, index, "adapter_config", "sha256") for part in files)
            if before != after and None not in (before, after):  # earlier versions did not record it
                yield f"the adapter_config.json of {name}.{index}: SHA-256 {_digest(before)} then, {_digest(after)} now"
    for name in sorted({*then["inputs"], *now["inputs"]}):
        before, after = (_value(part["inputs"], name, "sha256") for part in (then, now))
        if before != after:
            yield f"the {name}: SHA-256 {_digest(before)} then, {_digest(after)} now"


def _text_backends(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for another text backend, another text encoder of it, and other embeddings of the same prompt."""
    names = [_value(part, "text_backend", "name") for part in (then, now)]
    if None not in names:
        yield from _line("text_backend", *names)
    encoders = [_value(part, "text_backend", "text_encoder", "text_encoder") for part in (then, now)]
    if None not in encoders and encoders[0] != encoders[1]:
        yield f"the text encoder: SHA-256 {_digest(encoders[0])} then, {_digest(encoders[1])} now"
    before, after = (_mapping(part, "text_backend", "embeddings") for part in (then, now))
    for prompt in sorted({*before} & {*after}):
        if before[prompt] != after[prompt]:
            digests = _digest(before[prompt]), _digest(after[prompt])
            yield f"the embeddings of {short_text(prompt)!r}: SHA-256 {digests[0]} then, {digests[1]} now"


def _settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    yield from _text_backends(then, now)
    old, new = flatten(then["config"]), flatten(now["config"])
    for flat in (old, new):
        for name in FILE_LISTS:
            flat[name] = _file_settings(flat.get(name))
    for name in sorted({*old, *new}):
        group, *rest = name.split(".")
        if group not in _NOT_COMPARED and not (group in ("model", "refiner") and rest[0] in _MODELS):
            yield from _line(name, old.get(name), new.get(name))
    for name in _HARDWARE:
        yield from _line(name, then["hardware"].get(name), now["hardware"].get(name))
    for name in sorted({*_mapping(then, "hardware", "dtypes"), *_mapping(now, "hardware", "dtypes")}):
        yield from _line(f"the {name}'s dtype", *(_value(part["hardware"], "dtypes", name) for part in (then, now)))
    profiles = [_mapping(part, "hardware", "memory_profile") for part in (then, now)]
    tiled = any(profile.get(name) for profile in profiles for name in ("tiled_decode", "tiled_encode"))
    for name in (*_PROFILE, *(_TILES if tiled else ())):
        values = (_value(part["hardware"], "memory_profile", name) for part in (then, now))
        yield from _line(f"memory_profile.{name}", *values)
    stored = [profile.get("storage", "full") for profile in profiles]  # earlier records do not say
    yield from _line("memory_profile.storage", *stored)
    yield from _line("where memory ran out", *(_step_downs(record) for record in (then, now)))
    old, new = flatten(then["determinism"]), flatten(now["determinism"])
    for name in sorted({*old, *new}):
        yield from _line(name.removeprefix("environment."), old.get(name), new.get(name))


def _file_settings(value: Any) -> str | None:
    """Returns how much of each LoRA file was put on, or the words of embeddings; their SHA-256 compare the files."""
    files = [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
    numbers = [flatten({name: item for name, item in each.items() if name != "source"}) for each in files]
    texts = [" ".join(f"{name}={item}" for name, item in each.items() if item is not None) for each in numbers]
    return ", ".join(texts) or None


def _step_downs(record: Mapping[str, Any]) -> str | None:
    """Returns from which steps on a run went on with less memory, as far as that changes bits."""
    events = record.get("step_downs", ())
    found = [f"{each['lever']}={each['value']} from step {each['step'] + 1}" for each in events]
    return ", ".join(line for line, each in zip(found, events, strict=True) if each["lever"] in _STEP_DOWNS) or None


def _code(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    libraries = [name for name in {*then["versions"], *now["versions"]} if name.startswith("nvidia-")]
    for name in (*_LIBRARIES, *sorted(libraries)):
        yield from _line(name, then["versions"].get(name), now["versions"].get(name))
    yield from _line("diffuse", then["diffuse"], now["diffuse"])
    commits = [_commit(part["git"]) for part in (then, now)]
    if commits[0] != commits[1] or any("with changes" in commit for commit in commits):
        yield f"the code: {commits[0]} then, {commits[1]} now"


def _line(name: str, then: Any, now: Any) -> Iterator[str]:
    if then != now:
        yield f"{name}: {_short_text(then)} then, {_short_text(now)} now"


def _commit(git: Any) -> str:
    if not isinstance(git, Mapping):
        return "of no known commit"
    return f"commit {_short_text(git.get('commit'))[:12]}{'' if git.get('clean') is True else ' with changes'}"


def _mapping(part: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    value: Any = part
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _value(part: Mapping[str, Any], *names: str) -> Any:
    return _mapping(part, *names[:-1]).get(names[-1])


def _digest(value: Any) -> str:
    return "unknown" if value is None else _short_text(value)[:12]


def _short_text(value: Any) -> str:
    return "nothing" if value is None else short_text(value)
