"""The LoRA files that a configuration asks for: `lora=FILE:0.8`, or a list of such texts or of fields by name.

Each has `source` and `weight`; `unet`, `text_encoder`, `text_encoder_2`, `transformer` and `connectors` in place of the
weight for one component; and `blocks`, by which the weight of parts of a component is multiplied. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from diffuse.config.file_lists import FileList, check_fields, check_source, typed_text
from diffuse.errors import ConfigError

LORA = "lora"
LORA_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer", "connectors")
"""The components that may have a weight of their own."""
_LATER = ("transformer", "connectors")  # which earlier records and sweeps lack
_SHORT = re.compile(r"(?P<source>.+?):(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)


@dataclass(frozen=True)
class LoraSetting:
    """One LoRA file, and how much of it is put on."""

    source: str
    weight: float = 1.0
    unet: float | None = None
    text_encoder: float | None = None
    text_encoder_2: float | None = None
    transformer: float | None = None
    connectors: float | None = None
    blocks: Mapping[str, float] = field(default_factory=dict)  # path of a part of the model -> factor

    def strength(self, component: str, module: str) -> float:
        """Returns how much of the change of one layer is put on: the weight, times the factor of the part it is in.

        Args:
            module: the layer's path in its component, such as `mid_block.attentions.0.proj_in`.
        """
        own = getattr(self, component, None) if component in LORA_COMPONENTS else None
        weight = self.weight if own is None else own
        inside = [part for part in self.blocks if f"{module}.".startswith(f"{part}.")]
        return weight * self.blocks[max(inside, key=len)] if inside else weight

    def short(self) -> str:
        """Returns the setting as one types it: `FILE:0.8`, or with its fields where it has more of them."""
        if all(getattr(self, name) is None for name in LORA_COMPONENTS) and not self.blocks:
            return self.source if self.weight == 1 and not _SHORT.fullmatch(self.source) else self._with_weight()
        values = {name: value for name, value in self.as_values().items() if value not in (None, {})}
        return "{" + ", ".join(f"{name}: {_text(value)}" for name, value in values.items()) + "}"

    def as_values(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)

    def _with_weight(self) -> str:
        return f"{self.source}:{_text(self.weight)}"


_MOST = 10_000  # of a weight, or of a part's factor: their product is far below what a weight can be
_FIELDS = tuple(each.name for each in fields(LoraSetting))


def read_lora(value: Any) -> tuple[LoraSetting, ...]:
    """Returns the settings of a configuration's `lora`.

    Args:
        value: null, a text `FILE` or `FILE:WEIGHT`, or a list of such texts or of fields by name; plain values.

    Raises:
        ConfigError: it is something else, or a field is wrong.
    """
    return LORA_LIST.read(value)


def _read_one(item: Any, where: str) -> LoraSetting:
    if isinstance(item, str):
        match = _SHORT.fullmatch(item)
        item = {"source": match["source"], "weight": float(match["weight"])} if match else {"source": item}
    item = check_fields(item, where, "FILE, FILE:WEIGHT or '{source: FILE, weight: 0.8}'", _FIELDS, "a LoRA")
    source = check_source(item.get("source"), where, LORA_LIST.example)
    weight = item.get("weight", 1.0)
    numbers = {"weight": _number(1.0 if weight is None else weight, f"{where}.weight")}
    for name in LORA_COMPONENTS:
        if item.get(name) is not None:
            numbers[name] = _number(item[name], f"{where}.{name}")
    blocks = item.get("blocks")
    return LoraSetting(source, **numbers, blocks=dict(_blocks(blocks, f"{where}.blocks")))


def _blocks(value: Any, where: str) -> list[tuple[str, float]]:
    """Returns the factor of each part; `{down_blocks: {1: 0.5}}` is the same as `{down_blocks.1: 0.5}`."""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}={value}: should be parts of the model with factors, as {{mid_block: 0.5}}")
    found: list[tuple[str, float]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            found += [(f"{name}.{inner}", number) for inner, number in _blocks(item, f"{where}.{name}")]
        else:
            found.append((str(name), _number(item, f"{where}.{name}")))
    return found


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}={value}: should be a number; 1 is the whole effect, 0 none of it")
    if abs(value) > _MOST:
        raise ConfigError(f"{where}={value:g}: should be from -{_MOST} to {_MOST}; 1 is the whole effect, 0 none of it")
    return float(value)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_text(number)}" for name, number in value.items()) + "}"
    if isinstance(value, str):
        return typed_text(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


LORA_LIST = FileList(LORA, _FIELDS, _read_one, "lora=FILE:0.8", "weight: 0.8", "LoRA files", _LATER)
"""The field `lora`."""
