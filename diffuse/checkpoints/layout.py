"""The file names of the diffusers layout: which files of a component are its weights, in which variant.

Only names are looked at, so that a folder and a repository's listing are judged alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from diffuse.errors import CheckpointError

# Components of published pipelines that are not used here.
UNUSED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})

SINGLE = (".safetensors", ".gguf")  # files that are read as they are, beside pickles
ADAPTER_CONFIG = "adapter_config.json"  # where peft writes the settings of a LoRA, beside it
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
# Over the years the variant has stood before or after a shard's number, and anywhere in an index's name.
WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<a>\w+))?(?P<shard>-\d+-of-\d+)?"
    r"(?:\.(?P<b>\w+))?\.(?P<format>safetensors|bin)"
)
INDEX = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<a>\w+))?\.(?P<format>safetensors|bin)"
    r"(?:\.(?P<b>\w+))?\.index(?:\.(?P<c>\w+))?\.json"
)


def find_variants(names: Iterable[str]) -> dict[str | None, tuple[str, ...]]:
    """Maps each published variant to its files, from the file names of a component's folder. None is the plain variant.

    The files are one whole file, or an index followed by its shards; where both are published, the latter. Pickles
    (`.bin`) count only where there is nothing else.
    """
    names = list(names)
    return _variants(names, "safetensors") or _variants(names, "bin")


def _variants(names: Iterable[str], extension: str) -> dict[str | None, tuple[str, ...]]:
    whole: dict[tuple[str, str | None], str] = {}
    shards: dict[tuple[str, str | None], list[str]] = {}
    indices: dict[tuple[str, str | None], str] = {}
    for name in sorted(names):
        if (match := WEIGHTS.fullmatch(name)) and match["format"] == extension:
            key = (match["stem"], match["a"] or match["b"])
            if match["shard"]:
                shards.setdefault(key, []).append(name)
            else:
                whole[key] = name
        elif (match := INDEX.fullmatch(name)) and match["format"] == extension:
            indices[match["stem"], match["a"] or match["b"] or match["c"]] = name
    variants: dict[str | None, tuple[str, ...]] = {}
    for stem in _STEMS:
        for key in sorted({*whole, *shards}, key=str):
            if key[0] != stem or key[1] in variants:
                continue
            if key in indices and key in shards:
                variants[key[1]] = (indices[key], *shards[key])
            elif key in whole:
                variants[key[1]] = (whole[key],)
            else:
                variants[key[1]] = tuple(shards[key])
    return variants


def pick_files(
    listing: Mapping[str, Sequence[str]], component: str, variant: str | None, where: str, setting: str = "model"
) -> tuple[str, ...]:
    """Chooses the files of `component` to read: one whole file, or an index followed by its shards.

    A component that is not published in `variant` is read in the plain one, as long as the variant exists
    somewhere in the checkpoint.

    Args:
        listing: component -> its file names.
        variant: such as `fp16`; None for the plain one.
        where: names the component in messages.
        setting: what the source's fields begin with in the configuration, for messages.

    Raises:
        CheckpointError: there is no such variant, or no weights under a published name.
    """
    names = listing.get(component, ())
    variants = find_variants(names)
    if variant in variants:
        return variants[variant]
    if None in variants and any(variant in find_variants(others) for others in listing.values()):
        return variants[None]
    if variants:
        present = ", ".join(sorted(name or "the plain one" for name in variants))
        missing = f"variant {variant}" if variant else "weights without a variant"
        other = next((name for name in variants if name), None) if None not in variants else None
        raise CheckpointError(f"{where}: no {missing}; present: {present}; set {setting}.variant={other or 'null'}")
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise CheckpointError(
            f"{where}: holds only {pickles[0]}, and no weights under a published name (diffusion_pytorch_model or "
            "pytorch_model); give the file as the source of the component"
        )
    raise CheckpointError(
        f"{where}: has no weights (expected {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors); the checkpoint is "
        "incomplete"
    )


def is_component(component: str, names: Collection[str]) -> bool:
    """Tells whether a folder with files of these `names` may be `component` itself."""
    if component.startswith("tokenizer"):
        return {"vocab.json", "merges.txt"} <= {*names} or "tokenizer.json" in names
    return "config.json" in names
