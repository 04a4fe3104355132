"""Reads which weights of a model a LoRA file changes: each of its keys is used, or the file is refused."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.folder import file_digest, file_state
from diffuse.checkpoints.layout import ADAPTER_CONFIG
from diffuse.checkpoints.lora.factors import factor_rank, is_fitting, is_fitting_magnitude
from diffuse.checkpoints.lora.keys import Parts, dialect, form, split_keys
from diffuse.checkpoints.safetensors_file import SafetensorsFile, header_bytes, unreadable
from diffuse.checkpoints.tensor_reading import DTYPES
from diffuse.errors import CheckpointError
from diffuse.models.lora.family import lora_family, other_model
from diffuse.models.lora.names import LayerNames

_SHOWN = 3  # keys in a message
_MOST_SCALE = 1e9  # of what training writes; NaN is none
_NUMBERS = {**DTYPES, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "U8": torch.uint8}
_SCALARS = ("alpha", "scalar")
_ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers writes what peft keeps beside the weights
_OF_PEFT = "base_model.model."  # what peft's own names begin with
_LARGEST = 1e30  # alpha
_OF_THE_BIAS = ("diff_b", "b_norm")
_EXPRESSION = re.compile(r"[^\w.-]")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Change:
    """The change that a file makes to one weight."""

    component: str
    module: str
    """The path of the layer in its component."""
    parameter: str
    """`weight` or `bias`."""
    form: str
    """Which formula it is, see `keys.form`."""
    parts: Parts
    """The key of each factor."""
    scale: float
    """By which the factors' product is multiplied."""

    @property
    def key(self) -> str:
        """Is the weight's key in the component's state dict."""
        return f"{self.module}.{self.parameter}"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file on this machine, its header checked.

    Args:
        path: of the file.
        source: what the user asked for.
        revision: the commit on the hub; None for a file of this machine.
    """

    path: Path
    source: str
    file: SafetensorsFile
    metadata: Mapping[str, str]
    revision: str | None = None

    @classmethod
    def open(cls, path: Path, source: str, revision: str | None = None) -> LoraFile:
        """Opens a file.

        Raises:
            CheckpointError: it cannot be read, is damaged, or no LoRA.
        """
        file = SafetensorsFile.open(path, source)
        metadata = json.loads(header_bytes(path)).get("__metadata__") or {}
        lora = cls(path, source, file, {str(key): str(value) for key, value in metadata.items()}, revision)
        layers, others, _ = split_keys(file.tensors)
        if not layers:
            what = other_model(others)
            seems = f"it seems to be {what}" if what else f"it looks like {dialect(layers, others)}"
            raise CheckpointError(f"{source}: is no LoRA that is implemented; {seems} ({_listed(others)})")
        return lora

    @property
    def identity(self) -> str:
        """Tells files apart within a process: one that was replaced has another identity, also by its settings."""
        settings = self._settings_digest()
        return f"{self.path} {self._state()}" + ("" if settings is None else f" {settings}")

    def digest(self) -> str:
        """Returns the SHA-256 of the file. Every byte is read, once in a process for a file that does not change."""
        try:
            return file_digest(self.path)
        except OSError as error:
            raise unreadable(self.source, error) from None

    def record(self) -> dict[str, Any]:
        """Returns the file's source, its commit if it is on the hub, and its digest, for the record.

        Where peft's settings lie beside it and say its scale, their digest is there, too.
        """
        commit = {} if self.revision is None else {"revision": self.revision}
        settings = self._settings_digest()
        more = {} if settings is None else {"adapter_config": {"sha256": settings}}
        return {"source": self.source, **commit, "sha256": self.digest(), **more}

    def changes(self, names: LayerNames, shapes: Mapping[str, Shapes], model: str) -> list[Change]:
        """Returns what the file changes of a model's weights.

        Args:
            names: of the model's layers.
            shapes: component -> the shapes of its weights by their keys in our module.
            model: what the user calls it, for messages.

        Raises:
            CheckpointError: a key is not used, a factor is missing or does not fit.
        """
        layers, others, twice = split_keys(self.file.tensors)
        found = {name: names.find(name) for name in layers}
        unknown = [name for name, layer in found.items() if layer is None]
        if unknown:
            raise self._foreign(layers, unknown, others, names, model)
        if others:
            looks = dialect(layers, others)
            raise CheckpointError(f"{self.source}: has {_listed(others)}, of no form that is implemented ({looks})")
        if twice:
            raise CheckpointError(f"{self.source}: has {twice[0][1]} twice, also as {twice[0][0]}; the file is damaged")
        scalars = self._read_scalars(layers)
        adapters = self._adapters()
        changes: list[Change] = []
        origins: dict[tuple[str, str], str] = {}
        for name, parts in layers.items():
            layer = found[name]
            assert layer is not None
            for part, key in parts.items():
                if self.file.tensors[key].dtype not in (_NUMBERS if part in _SCALARS else DTYPES):
                    dtype = self.file.tensors[key].dtype
                    raise CheckpointError(
                        f"{self.source}: {key} is stored as {dtype}; one of {', '.join(DTYPES)} is read"
                    )
            kind = form(parts)
            if kind is None:
                raise CheckpointError(
                    f"{self.source}: has of {name} only {', '.join(sorted(parts))}, which make no change; the file is "
                    f"incomplete, or of a form that is not implemented ({dialect(layers, others)})"
                )
            scale = self._scale(name, kind, parts, scalars, adapters)
            for change in _changes_of(layer.component, layer.module, kind, parts, scale):
                self._check_fit(change, shapes[change.component], layers, model)
                place = change.component, change.key
                if place in origins:
                    first = origins[place]
                    raise CheckpointError(f"{self.source}: has {name} twice, also as {first}; the file is damaged")
                origins[place] = name
                changes.append(change)
        return changes

    def check_unchanged(self, identity: str) -> None:
        """Raises CheckpointError for a file that was replaced since it was opened, and had that `identity`."""
        if self.identity != identity:
            raise CheckpointError(f"{self.source}: was replaced while it was in use; run the command again")

    def _state(self) -> tuple[int, ...]:
        try:
            return file_state(self.path)
        except OSError as error:
            raise unreadable(self.source, error) from None

    def _foreign(
        self, layers: Mapping[str, Parts], unknown: Sequence[str], others: Sequence[str], names: LayerNames, model: str
    ) -> CheckpointError:
        """Returns the error for a file with layers that the model has not."""
        looks = dialect(layers, others)
        made_for = self._made_for(layers)
        said = f"; it was made for {made_for}" if made_for else ""
        if len(unknown) == len(layers):
            return CheckpointError(
                f"{self.source}: changes no layer of {model}{said}: has {_listed(unknown)} ({looks}); use a LoRA that "
                "was made for this family"
            )
        near = difflib.get_close_matches(unknown[0], names.spellings(unknown[0]), 1)
        nearest = f", the nearest is {near[0]}" if near else ""
        return CheckpointError(
            f"{self.source}: has {_listed(unknown)}, of which {model} has no layer{nearest} ({looks}{said})"
        )

    def _made_for(self, layers: Mapping[str, Parts]) -> str | None:
        widths: dict[str, int | None] = {}
        for name, parts in layers.items():
            down = next((parts[part] for part in ("down", "hada_w1_b", "lokr_w2_b") if part in parts), None)
            shape = () if down is None else self.file.tensors[down].shape
            widths[name] = shape[1] if len(shape) == 2 else None
        return lora_family(widths, self.metadata)

    def _check_fit(self, change: Change, weights: Shapes, layers: Mapping[str, Parts], model: str) -> None:
        weight = weights.get(change.key)
        if weight is None:
            key = next(iter(change.parts.values()))
            raise CheckpointError(f"{self.source}: has {key}, and {change.component}'s {change.module} has no bias")
        factors = {part: self.file.tensors[key].shape for part, key in change.parts.items()}
        whole = {part: shape for part, shape in factors.items() if part not in ("dora_scale", "magnitude")}
        rank = factor_rank(whole)
        first = next(iter(change.parts.values()))
        if rank == 0 or any(0 in shape for shape in factors.values()):
            raise CheckpointError(f"{self.source}: {first} has the rank 0, and changes nothing; the file is damaged")
        wrong = [
            part for part in factors if part not in whole and not is_fitting_magnitude(part, factors[part], weight)
        ]
        if wrong or not is_fitting(change.form, whole, weight):
            made_for = self._made_for(layers)
            said = f"; it was made for {made_for}" if made_for else "; it was made for another model"
            shown = ", ".join(f"{part} {list(shape)}" for part, shape in factors.items())
            raise CheckpointError(
                f"{self.source}: {first.rpartition('.')[0]} ({shown}) does not fit {model}, whose {change.component} "
                f"has {change.key} {list(weight)}{said}"
            )

    def _scale(
        self, name: str, kind: str, parts: Parts, scalars: Mapping[str, float], adapters: Mapping[str, Any]
    ) -> float:
        """Returns by what a layer's product of factors is multiplied: alpha over the rank."""
        shapes = {part: self.file.tensors[key].shape for part, key in parts.items()}
        factor = scalars[parts["scalar"]] if "scalar" in parts else 1.0
        rank = factor_rank(shapes)
        if not abs(factor) <= _MOST_SCALE:
            raise CheckpointError(f"{self.source}: the factor of {name} is {factor}; the file is damaged")
        if not rank or kind == "full":
            return factor
        if kind == "LoKr" and "lokr_w1" in parts and "lokr_w2" in parts:
            return factor
        alpha = scalars[parts["alpha"]] if "alpha" in parts else self._adapter_alpha(name, rank, adapters)
        if not abs(alpha * factor) <= _MOST_SCALE:
            raise CheckpointError(f"{self.source}: the alpha of {name} is {alpha}; the file is damaged")
        by_root = any(name.startswith(prefix) and each.get("use_rslora") is True for prefix, each in adapters.items())
        return factor * alpha / (math.sqrt(rank) if by_root and "alpha" not in parts else rank)

    def _settings_file(self) -> Path | None:
        """Returns the file beside this one that says the scale; None where there is none."""
        beside = self.path.with_name(ADAPTER_CONFIG)
        asks = _ADAPTER_METADATA not in self.metadata and any(key.startswith(_OF_PEFT) for key in self.file.tensors)
        return beside if asks and beside.is_file() else None

    def _settings_digest(self) -> str | None:
        beside = self._settings_file()
        return None if beside is None else hashlib.sha256(_read_settings(beside, self.source).encode()).hexdigest()

    def _adapters(self) -> dict[str, dict[str, Any]]:
        """Returns the settings that peft keeps beside the weights, by what the names begin with that they are for."""
        text = self.metadata.get(_ADAPTER_METADATA)
        if text is None:
            beside = self._settings_file()
            if beside is None:
                return {}
            text = _read_settings(beside, self.source)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.source}: the settings of its adapter are no JSON object; the file is damaged")
        adapters: dict[str, dict[str, Any]] = {}
        if "lora_alpha" in values or "r" in values:
            adapters[""] = values
        else:
            for name, value in values.items():
                component, _, field = str(name).partition(".")
                adapters.setdefault(f"{component}.", {})[field] = value
        for settings in adapters.values():
            _check_settings(settings, self.source)
        return adapters

    def _adapter_alpha(self, name: str, rank: int, adapters: Mapping[str, Any]) -> float:
        """Returns the alpha that peft's settings give a layer; its rank where they say nothing: the scale is 1."""
        for prefix, values in adapters.items():
            if not name.startswith(prefix):
                continue
            for pattern, alpha in (values.get("alpha_pattern") or {}).items():
                literal = str(pattern).removeprefix("^").removesuffix("$").replace("\\.", ".")
                if _EXPRESSION.search(literal):
                    raise CheckpointError(
                        f"{self.source}: the alpha_pattern {literal} is an expression; not implemented"
                    )
                if name == literal or name.endswith(f".{literal}"):
                    return _as_number(alpha, rank)
            return _as_number(values.get("lora_alpha", values.get("alpha")), rank)
        return float(rank)

    def _read_scalars(self, layers: Mapping[str, Parts]) -> dict[str, float]:
        """Returns the single numbers in the file by their keys."""
        keys = [parts[part] for parts in layers.values() for part in _SCALARS if part in parts]
        numbers: dict[str, float] = {}
        try:
            with self.path.open("rb") as opened:
                for key in keys:
                    entry = self.file.tensors[key]
                    dtype = _NUMBERS.get(entry.dtype)
                    if dtype is None or math.prod(entry.shape) != 1:
                        raise CheckpointError(
                            f"{self.source}: {key} should be one number, and is {entry.dtype} {list(entry.shape)}"
                        )
                    opened.seek(entry.start)
                    content = bytearray(opened.read(entry.nbytes))
                    numbers[key] = float(torch.frombuffer(content, dtype=dtype).item())
        except OSError as error:
            raise unreadable(self.source, error) from None
        return numbers


def _changes_of(component: str, module: str, kind: str, parts: Parts, scale: float) -> Iterable[Change]:
    """Yields the changes of one layer: of its weight, and perhaps of its bias."""
    used = {part: key for part, key in parts.items() if part not in _SCALARS}
    bias = {part: key for part, key in used.items() if part in _OF_THE_BIAS}
    weight = {part: key for part, key in used.items() if part not in _OF_THE_BIAS}
    if weight:
        yield Change(component, module, "weight", kind, weight, scale)
    if bias:
        yield Change(component, module, "bias", kind, bias, scale)


def _read_settings(path: Path, source: str) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: cannot be read, and says the scale of {source}") from None


def _check_settings(values: Mapping[str, Any], source: str) -> None:
    """Raises CheckpointError for settings of peft that say the scale, and not as peft writes it."""
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{source}: the settings of its adapter have alpha_pattern={patterns!r:.80}, no object")
    numbers = {key: values.get(key) for key in ("lora_alpha", "alpha")}
    for key, value in (numbers | {f"alpha_pattern.{key}": each for key, each in patterns.items()}).items():
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise CheckpointError(f"{source}: the settings of its adapter have {key}={value!r:.80}, no number")
    by_root = values.get("use_rslora")
    if not isinstance(by_root, bool | None):
        raise CheckpointError(
            f"{source}: the settings of its adapter have use_rslora={by_root!r:.80}, neither true nor false"
        )


def _as_number(value: float | None, otherwise: float) -> float:
    if value is None:
        return float(otherwise)
    return float(value) if abs(value) < _LARGEST else math.inf


def _listed(keys: Sequence[str]) -> str:
    """Returns the first few keys, and how many more there are."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(key[:120] for key in keys[:_SHOWN]) + more


def layer_shapes(
    checkpoint: Checkpoint, renames: Mapping[str, Callable[[str], str | None]]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shapes of a model's weights by their keys in our modules, component by component.

    Args:
        renames: of the components, from published keys to the module's.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for component, rename in renames.items():
        own = shapes.setdefault(component, {})
        for file in checkpoint.part(component).tensor_files(component):
            own |= {key: info.shape for name, info in file.tensors.items() if (key := rename(name)) is not None}
    return shapes


def layer_names(shapes: Mapping[str, Shapes]) -> LayerNames:
    """Returns the names that files have for the layers of a model whose weights have these shapes."""
    return LayerNames(
        {
            component: [key.removesuffix(".weight") for key in own if key.endswith(".weight")]
            for component, own in shapes.items()
        }
    )
