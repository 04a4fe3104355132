"""What of two runs' records may be why their pictures differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffuse.record import record
from diffuse.schema import COMPONENTS

# Of the configuration: what changes no pixel, or stands under another name with what became of it.
_ELSEWHERE = (
    "output",
    "tracking",
    "report",
    "objective",
    "hardware",
    "memory_profile",
    "seed",
    "num_images",
    "input_image",
    "mask_image",
)
_MODELS = ("source", "revision", "name", "download", "request_defaults", "min_vram_gib", *COMPONENTS)
_HARDWARE = ("device", "name", "deterministic", "capability", "driver", "cuda", "cudnn", "cpu", "cpu_capability")
_PROFILE = ("half", "on_device", "guidance", "batch_size", "tiled_decode")
_COMPUTES = ("torch", "numpy", "pillow", "safetensors", "tokenizers", "accelerate", "python")  # of the versions


def between(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of `then`, a recorded run's record, is another in `now`, a line each, the likeliest cause first."""
    return [*_weights(then, now), *_of_parts(then, now), *_code(then, now)]


def of_weights(then: Any, now: Any, name: str) -> Iterator[str]:
    """What of the recorded weights of a model is another: its own, and those of components from elsewhere."""
    before, after = (part.get("sha256") if isinstance(part, Mapping) else None for part in (then, now))
    if before != after:
        yield f"the {name}: SHA-256 {_digest(before)} then, {_digest(after)} now"
    parts = [_mapping(part, "components") if isinstance(part, Mapping) else {} for part in (then, now)]
    for component in sorted({*parts[0], *parts[1]}):
        yield from of_weights(parts[0].get(component), parts[1].get(component), f"{component}'s {name}")


def _weights(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    yield from of_weights(then["weights"], now["weights"], "weights")
    yield from of_weights(then["weights"].get("refiner"), now["weights"].get("refiner"), "refiner's weights")
    for name in sorted({*then["inputs"], *now["inputs"]}):
        before, after = (_of(part["inputs"], name, "sha256") for part in (then, now))
        if before != after:
            yield f"the {name}: SHA-256 {_digest(before)} then, {_digest(after)} now"


def _of_parts(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = record.flat(then["config"]), record.flat(now["config"])
    for name in sorted({*old, *new}):
        group, *rest = name.split(".")
        if group not in _ELSEWHERE and not (group in ("model", "refiner") and rest[0] in _MODELS):
            yield from _line(name, old.get(name), new.get(name))
    for name in _HARDWARE:
        yield from _line(name, then["hardware"].get(name), now["hardware"].get(name))
    for name in sorted({*_mapping(then, "hardware", "dtypes"), *_mapping(now, "hardware", "dtypes")}):
        yield from _line(f"the {name}'s dtype", *(_of(part["hardware"], "dtypes", name) for part in (then, now)))
    for name in _PROFILE:
        found = (_of(part["hardware"], "memory_profile", name) for part in (then, now))
        yield from _line(f"memory_profile.{name}", *found)
    old, new = record.flat(then["determinism"]), record.flat(now["determinism"])
    for name in sorted({*old, *new}):
        yield from _line(name.removeprefix("environment."), old.get(name), new.get(name))


def _code(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    libraries = [name for name in {*then["versions"], *now["versions"]} if name.startswith("nvidia-")]
    for name in (*_COMPUTES, *sorted(libraries)):
        yield from _line(name, then["versions"].get(name), now["versions"].get(name))
    yield from _line("diffuse", then["diffuse"], now["diffuse"])
    commits = [_commit(part["git"]) for part in (then, now)]
    if commits[0] != commits[1] or any("with changes" in commit for commit in commits):
        yield f"the code: {commits[0]} then, {commits[1]} now"


def _line(name: str, then: Any, now: Any) -> Iterator[str]:
    if then != now:
        yield f"{name}: {_short(then)} then, {_short(now)} now"


def _commit(git: Any) -> str:
    if not isinstance(git, Mapping):
        return "of no known commit"
    return f"commit {_short(git.get('commit'))[:12]}{'' if git.get('clean') is True else ' with changes'}"


def _mapping(part: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found: Any = part
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _of(part: Mapping[str, Any], *names: str) -> Any:
    return _mapping(part, *names[:-1]).get(names[-1])


def _digest(value: Any) -> str:
    return "unknown" if value is None else _short(value)[:12]


def _short(value: Any) -> str:
    text = "nothing" if value is None else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
