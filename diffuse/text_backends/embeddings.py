"""Embeddings of prompts beside who made them, and the check that they are of the model that is to use them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from diffuse.errors import ConfigError

_EMPTY = hashlib.sha256().hexdigest()  # the digest of a component that is not here


@dataclass(frozen=True)
class TextStates:
    """The hidden states of one prompt, as diffusers' `prompt_embeds` without the padding in front.

    Args:
        states: `[T', D]`, of the last `T'` tokens; `D` is the width of a layer times the layers, the layer fastest.
        mask: uint8 `[T]`, one at tokens and zero at padding.
        cut: the end of the prompt that did not fit, or an empty text.
    """

    states: Tensor
    mask: Tensor
    cut: str = ""

    def digest(self) -> str:
        """Returns a SHA-256 of the states and the mask."""
        stored = self.states.detach().cpu().contiguous().view(torch.uint8).numpy()
        return hashlib.sha256(stored.tobytes() + self.mask.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class TextEncoderIdentity:
    """The text encoder that made embeddings, and the connectors of the checkpoint that it is of.

    Either SHA-256 is null where the files are not there, or nobody says.
    """

    text_encoder: str | None = None
    connectors: str | None = None
    source: str | None = None  # for people

    @classmethod
    def of_digests(cls, text_encoder: str, connectors: str, source: str) -> TextEncoderIdentity:
        """Builds it of digests, of which one may be that of a component that is not here."""
        encoder, own = (None if each == _EMPTY else each for each in (text_encoder, connectors))
        return cls(encoder, own, source)

    @classmethod
    def of_json(cls, value: Any) -> TextEncoderIdentity:
        """Builds it of plain values from anywhere. What is no text counts as null."""
        found = value if isinstance(value, Mapping) else {}
        names = [field.name for field in fields(cls)]
        return cls(**{name: text for name in names if isinstance(text := found.get(name), str)})

    def as_json(self) -> dict[str, str | None]:
        """Returns it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Embeddings:
    """Prompts with their states, all of one text encoder and one length."""

    prompts: Sequence[str]
    states: Sequence[TextStates]
    max_sequence_length: int
    encoder: TextEncoderIdentity


class TextEncoder(Protocol):
    """The text encoder of a model, alone."""

    tokens: int  # of a text with its padding

    def encode(self, texts: Sequence[str], tokens: int | None = None) -> list[TextStates]:
        """Returns the states `[T', D]` of texts, computed together, of `tokens` in place of the usual number."""
        ...

    def identity(self) -> TextEncoderIdentity:
        """Returns who makes the embeddings. Reads every byte of the weights."""
        ...


@dataclass(frozen=True)
class TextNeeds:
    """The needs of a model: the width of the states, tokens of a prompt with its padding, its own text encoder."""

    width: int
    max_sequence_length: int
    encoder: TextEncoderIdentity


def check_encoder(encoder: TextEncoderIdentity, needs: TextNeeds, where: str, sha256: str | None = None) -> str | None:
    """Checks that embeddings are of the text encoder that a model has.

    Args:
        where: names the embeddings in messages.
        sha256: of the only text encoder that may have made them, where the user says so.

    Returns:
        A line for the user where nobody can tell; None where they are.

    Raises:
        ConfigError: they are of another.
    """
    again = "encode the prompts anew with this model"
    if sha256 is not None:
        if encoder.text_encoder == sha256:
            return None
        raise ConfigError(
            f"{where}: the embeddings are of the text encoder {_short(encoder.text_encoder)}, and "
            f"text_backend.text_encoder_sha256 asks for {_short(sha256)}; {again}"
        )
    own = needs.encoder
    for what, ours, theirs in (
        ("text encoder", own.text_encoder, encoder.text_encoder),
        ("connectors", own.connectors, encoder.connectors),
    ):
        if ours is None or theirs is None:
            continue
        if ours == theirs:
            return None
        source = f" ({encoder.source})" if encoder.source else ""
        accept = f", or accept them with text_backend.text_encoder_sha256={encoder.text_encoder}"
        raise ConfigError(
            f"{where}: the embeddings are of another model{source}: its {what} {_short(theirs)}, and here "
            f"{_short(ours)}; {again}{accept if what == 'connectors' and encoder.text_encoder else ''}"
        )
    return f"{where}: does not say which text encoder made the embeddings; only their width could be compared"


def check_states(states: Sequence[TextStates], count: int, needs: TextNeeds, where: str) -> None:
    """Checks the shapes and the values of states against what a model takes.

    Raises:
        ConfigError: there are more or fewer than `count`, one is of another width or length, has a wrong mask, or holds
            NaN.
    """
    if len(states) != count:
        raise ConfigError(f"{where}: has embeddings of {len(states)} prompts; {count} were asked for")
    for each in states:
        tokens, length = each.mask.shape[0], needs.max_sequence_length
        if each.states.shape[1] != needs.width:
            raise ConfigError(
                f"{where}: the embeddings are {each.states.shape[1]} wide, and this model takes {needs.width}; they "
                "are of another text encoder: encode the prompts with this model"
            )
        if tokens != length:
            raise ConfigError(
                f"{where}: max_sequence_length is {tokens}, and this model takes {length}; encode the prompts anew"
            )
        if not bool(each.mask.any()) or int(each.mask.max()) > 1 or bool(each.mask[: tokens - len(each.states)].any()):
            raise ConfigError(f"{where}: the attention mask is none of zeros and ones with its tokens; encode anew")
        if not bool(torch.isfinite(each.states).all()):
            raise ConfigError(f"{where}: the embeddings hold NaN or an infinity; encode the prompts anew")


def _short(digest: str | None) -> str:
    return "of which nothing is said" if digest is None else digest[:12]
