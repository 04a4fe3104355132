"""How the files of a checkpoint in the diffusers layout are named, and which of them make up a component.

Names alone are looked at, so that a folder and a repository's listing are judged alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from diffuse.errors import CheckpointError

# Parts of published pipelines that take no part in making a picture.
UNUSED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_STEMS = ("diffusion_pytorch_model", "model")
# A variant stands before or after a shard's number, and anywhere in an index's name, as the years went by.
WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(?:\.(?P<a>\w+))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<b>\w+))?\.safetensors"
)
INDEX = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(?:\.(?P<a>\w+))?\.safetensors(?:\.(?P<b>\w+))?\.index(?:\.(?P<c>\w+))?\.json"
)


def variants(names: Iterable[str]) -> dict[str | None, tuple[str, ...]]:
    """Variant -> the files that make it up, from a component folder's file names. None is the plain variant.

    One whole file, or an index followed by its shards; where both are published, the shards.
    """
    whole: dict[tuple[str, str | None], str] = {}
    shards: dict[tuple[str, str | None], list[str]] = {}
    indices: dict[tuple[str, str | None], str] = {}
    for name in sorted(names):
        if match := WEIGHTS.fullmatch(name):
            key = (match["stem"], match["a"] or match["b"])
            if match["shard"]:
                shards.setdefault(key, []).append(name)
            else:
                whole[key] = name
        elif match := INDEX.fullmatch(name):
            indices[match["stem"], match["a"] or match["b"] or match["c"]] = name
    found: dict[str | None, tuple[str, ...]] = {}
    for stem in _STEMS:
        for key in sorted({*whole, *shards}, key=str):
            if key[0] != stem or key[1] in found:
                continue
            if key in indices and key in shards:
                found[key[1]] = (indices[key], *shards[key])
            elif key in whole:
                found[key[1]] = (whole[key],)
            else:
                found[key[1]] = tuple(shards[key])
    return found


def pick(
    listing: Mapping[str, Sequence[str]], component: str, variant: str | None, where: str, field: str = "model"
) -> tuple[str, ...]:
    """The files of `component` to read, from a listing of every component's file names.

    `where` and `field` are for messages: where that is, and what its settings begin with in the configuration.

    A component that is not published in the wanted variant is read in the plain one, as long as the variant exists
    somewhere in the checkpoint.

    Raises:
        CheckpointError: there is no such variant, or there are only pickles, or no weights at all.
    """
    names = listing.get(component, ())
    found = variants(names)
    if variant in found:
        return found[variant]
    if None in found and any(variant in variants(others) for others in listing.values()):
        return found[None]
    if found:
        present = ", ".join(sorted(name or "the plain one" for name in found))
        wanted = f"variant {variant}" if variant else "weights without a variant"
        instead = next((name for name in found if name), None) if None not in found else None
        raise CheckpointError(f"{where}: no {wanted}; present: {present}; set {field}.variant={instead or 'null'}")
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise CheckpointError(
            f"{where}: holds only pickled weights ({pickles[0]}); pickles can run code when they are read and are "
            "refused: take a revision of the checkpoint that has .safetensors, or save it anew as safetensors"
        )
    raise CheckpointError(
        f"{where}: has no weights (expected {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors); the checkpoint is "
        "incomplete"
    )


def is_component(component: str, names: Collection[str]) -> bool:
    """Whether a folder with files of these `names` may be `component` itself."""
    if component.startswith("tokenizer"):
        return {"vocab.json", "merges.txt"} <= {*names} or "tokenizer.json" in names
    return "config.json" in names
