"""Takes the keys of a LoRA file apart: into the name of a layer, and the factor of its change that the tensor is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_LYCORIS = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a"
_LYCORIS += " lokr_w2_b lokr_t2 diff diff_b w_norm b_norm dora_scale alpha scalar"
_PLAIN = frozenset(_LYCORIS.split())
# The end of a key -> the factor. peft may write the adapter's name before `weight`.
_ENDS = (
    (re.compile(r"\.lora_down\.weight$|[._]lora\.down\.weight$|\.lora_linear_layer\.down\.weight$"), "down"),
    (re.compile(r"\.lora_up\.weight$|[._]lora\.up\.weight$|\.lora_linear_layer\.up\.weight$"), "up"),
    (re.compile(r"\.lora_A(?:\.\w+)?\.weight$"), "down"),
    (re.compile(r"\.lora_B(?:\.\w+)?\.weight$"), "up"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"\.lora_magnitude_vector(?:\.\w+)??(?:\.weight)?$"), "magnitude"),
)
_WORD = re.compile(r"lora|hada_|lokr_|oft_|boft|glora|\.alpha$|dora_scale|\.diff(?:_b)?$")

Parts = Mapping[str, str]
"""The factors of one layer's change by name, such as `down`, each with its key in the file."""

# Which factors together are a change, and those that may be there beside them.
_FORMS: dict[str, tuple[tuple[frozenset[str], ...], frozenset[str]]] = {
    "LoRA": ((frozenset({"down", "up"}),), frozenset({"mid", "alpha", "dora_scale", "magnitude", "scalar"})),
    "LoHa": (
        (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
        frozenset({"hada_t1", "hada_t2", "alpha", "dora_scale", "scalar"}),
    ),
    "LoKr": (
        tuple(
            frozenset({*first, *second})
            for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
            for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
        ),
        frozenset({"alpha", "dora_scale", "scalar"}),
    ),
    "full": (
        tuple(
            map(frozenset, (("diff",), ("diff", "diff_b"), ("diff_b",), ("w_norm",), ("w_norm", "b_norm"), ("b_norm",)))
        ),
        frozenset({"alpha"}),
    ),
}


def split_keys(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str], list[tuple[str, str]]]:
    """Takes keys apart.

    Returns:
        The factors of each layer by its name in the file; the keys that are no factor; and pairs of keys that are the
        same factor of the same layer.
    """
    layers: dict[str, dict[str, str]] = {}
    others: list[str] = []
    twice: list[tuple[str, str]] = []
    for key in keys:
        name, part = _split(key)
        if not name:
            others.append(key)
        elif part in layers.setdefault(name, {}):
            twice.append((layers[name][part], key))
        else:
            layers[name][part] = key
    return layers, others, twice


def _split(key: str) -> tuple[str, str]:
    name, _, last = key.rpartition(".")
    if last in _PLAIN:
        return name, last
    for end, part in _ENDS:
        if match := end.search(key):
            return key[: match.start()], part
    return "", ""


def form(parts: Parts) -> str | None:
    """Returns the form of a change that has these factors, such as `LoKr`; None where some are missing."""
    for name, (sets, beside) in _FORMS.items():
        if parts.keys() - beside in sets:
            tucker = parts.keys() & {"hada_t1", "hada_t2"}
            return None if len(tucker) == 1 else name
    return None


def dialect(layers: Mapping[str, Parts], others: Sequence[str]) -> str:
    """Returns what a file's keys look like, in words."""
    names = list(layers)
    parts = {part for each in layers.values() for part in each}
    if any("oft_" in key for key in others):
        return "OFT"
    if any("glora" in key or ".a1." in key for key in others):
        return "GLoRA"
    if any(part.startswith("hada_") for part in parts):
        return "LoHa"
    if any(part.startswith("lokr_") for part in parts):
        return "LoKr"
    if "dora_scale" in parts or "magnitude" in parts:
        return "DoRA"
    if any(name.startswith(("lora_unet_", "lora_te")) for name in names):
        return "LoCon" if "mid" in parts else "kohya"
    if any(name.startswith("base_model.model.") for name in names):
        return "PEFT"
    if {"down", "up"} & parts:
        return "diffusers"
    return "LoRA" if any(_WORD.search(key) for key in others) else "no LoRA"
