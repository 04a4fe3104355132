"""Fits textual inversions to a model: the words that they add to its tokenizers, and the vectors behind these.

Nothing of the model changes: an added word has a number behind those of the text encoder's own words, and its vectors
go to the text encoder with the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.embedding.embedding_file import CLIP_G, CLIP_L
from diffuse.checkpoints.embedding.locate_embedding import NamedEmbedding
from diffuse.errors import CheckpointError, ConfigError
from diffuse.models.text_encoder.clip import CLIPTextConfig
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer, vector_names
from diffuse.pipelines.components import Components, Role, read_configs, with_role

_PARTS = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}
_WIDTHS = {
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
    (1280,): "Stable Diffusion XL's second text encoder",
}


@dataclass(frozen=True)
class LearnedVectors:
    """The vectors `[N, D]` of the words that were added to a text encoder's own. Two with the same key are the same."""

    key: str
    vectors: Tensor = field(compare=False, repr=False)
    first: int = 0
    """The number of the first one among the text encoder's words."""


@dataclass(frozen=True)
class Words:
    """The words that one text encoder knows: its tokenizer, and the vectors of those that were added."""

    tokenizer: CLIPTokenizer
    learned: LearnedVectors | None = None


def learn_words(
    embeddings: Sequence[NamedEmbedding],
    tokenizers: Mapping[str, CLIPTokenizer],
    configs: Mapping[str, CLIPTextConfig],
    model: str,
    *,
    strict: bool = True,
) -> dict[str, Words]:
    """Returns the words of each text encoder, with those of textual inversions among them.

    Args:
        embeddings: in the order in which their words are numbered.
        tokenizers: of the text encoders, by these.
        configs: of the text encoders.
        model: what the user calls it, for messages.
        strict: whether each file is to fit; else each word is to have one that does.

    Raises:
        ConfigError: a word is one already.
        CheckpointError: a file is for another model, or cannot be read.
    """
    added: dict[str, dict[str, Tensor]] = {name: {} for name in tokenizers}
    widths = {name: config.hidden_size for name, config in configs.items()}
    for index, embedding in enumerate(embeddings):
        fitting = _fitting(embedding, added, widths)
        if not fitting and strict:
            raise _misfit(embedding, widths, model)
        for name, vectors in fitting.items():
            _check_word(index, embedding.word, len(vectors), tokenizers[name], added[name], embedding.file.source)
            added[name][embedding.word] = vectors
    for embedding in embeddings:
        lacking = [name for name in added if embedding.word not in added[name]]
        if lacking:
            raise CheckpointError(
                f"{embedding.file.source}: has vectors for one of the text encoders of {model}, and none of "
                f"{configs[lacking[0]].hidden_size} numbers for {lacking[0]}; give an embedding that was made for this "
                "family, or the other file beside it"
            )
    return {name: _with_words(tokenizers[name], own, configs[name].vocab_size) for name, own in added.items()}


def words_of_checkpoint(
    embeddings: Sequence[NamedEmbedding], components: Components, checkpoint: Checkpoint
) -> dict[str, Words]:
    """Returns the words of a checkpoint's text encoders, of which no weight is read; see `learn_words`."""
    encoders = {name: each for name, each in components.items() if each.role is Role.text_encoder}
    if any(each.config is not CLIPTextConfig for each in encoders.values()):
        raise ConfigError(
            f"embedding={embeddings[0].file.source}: this family of models takes no embeddings; leave it out"
        )
    configs = read_configs(encoders, checkpoint)
    folders = dict(zip(encoders, with_role(components, Role.tokenizer), strict=True))
    tokenizers = {
        name: CLIPTokenizer.from_folder(checkpoint.part(folder).path(folder)) for name, folder in folders.items()
    }
    return learn_words(embeddings, tokenizers, configs, f"model.source={checkpoint.source}")


def _with_words(tokenizer: CLIPTokenizer, added: Mapping[str, Tensor], first: int) -> Words:
    if not added:
        return Words(tokenizer)
    numbers: dict[str, range] = {}
    count = first
    for word, vectors in added.items():
        numbers[word] = range(count, count + len(vectors))
        count += len(vectors)
    together = torch.cat([*added.values()])
    key = hashlib.sha256(repr(numbers).encode() + together.numpy().tobytes()).hexdigest()
    return Words(tokenizer.with_words(numbers), LearnedVectors(key, together, first))


def _fitting(
    embedding: NamedEmbedding, added: Mapping[str, Mapping[str, Tensor]], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Returns the vectors of a file by the text encoders that they are for; none where they fit none.

    A file that does not say which one is for that whose width it has, and for the second where the first has its own.
    So is every file of one tensor where the model has one text encoder.
    """
    file = embedding.file
    if len(file.keys) == len(widths) == 1:
        return {
            name: file.vectors(part)
            for name, part in zip(widths, file.keys, strict=True)
            if file.shape(part)[1] == widths[name]
        }
    if None in file.keys:
        fitting = [name for name, width in widths.items() if width == file.shape(None)[1]]
        free = [name for name in fitting if embedding.word not in added[name]]
        return {name: file.vectors(None) for name in (free or fitting)[:1]}
    parts = {name: part for name, part in _PARTS.items() if name in widths and part in file.keys}
    fits = all(file.shape(part)[1] == widths[name] for name, part in parts.items())
    if "text_encoder_2" not in widths or len(parts) < len(widths) or not fits:
        return {}
    return {name: file.vectors(part) for name, part in parts.items()}


def _misfit(embedding: NamedEmbedding, widths: Mapping[str, int], model: str) -> CheckpointError:
    file = embedding.file
    theirs = tuple(sorted(file.shape(part)[1] for part in file.keys))
    made_for = f"; it was made for {_WIDTHS[theirs]}" if theirs in _WIDTHS else ""
    parts = sorted(file.keys, key=lambda part: part != CLIP_L)
    said = " and ".join(f"{part or 'vectors'} of {file.shape(part)[1]} numbers" for part in parts)
    wanted = {part: name for name, part in _PARTS.items() if name in widths}
    (part,) = file.keys if len(file.keys) == 1 else (None,)
    if len(widths) > 1 and part in wanted and file.shape(part)[1] == widths[wanted[part]]:
        lacking = " or ".join(f"{each} of {widths[wanted[each]]} numbers" for each in wanted if each != part)
        return CheckpointError(
            f"{file.source}: has {said} and no {lacking}, and {model} takes both; give a file that has them"
        )
    own = " and ".join(f"{name} of {width}" for name, width in widths.items())
    return CheckpointError(
        f"{file.source}: has {said}, and {model} has {own}{made_for}; give an embedding that was made for this family"
    )


def _check_word(
    index: int, word: str, count: int, tokenizer: CLIPTokenizer, added: Mapping[str, Tensor], source: str
) -> None:
    """Raises ConfigError for a word that the tokenizer has, or that another embedding has added."""
    if count > tokenizer.room:
        raise CheckpointError(f"{source}: has {count} vectors, and a prompt takes {tokenizer.room}")
    taken = {name.lower() for other, vectors in added.items() for name in vector_names(other, len(vectors))}
    for name in vector_names(word, count):
        where = f"embedding.{index}.token={name}"
        if tokenizer.has_word(name):
            raise ConfigError(f'{where}: is a word of the tokenizer already; give another, such as "<{word}>"')
        if name.lower() in taken:
            raise ConfigError(f"{where}: is the word of another embedding; give each its own")
