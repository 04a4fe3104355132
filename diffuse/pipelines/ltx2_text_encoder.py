"""The text encoder of LTX-2 with its tokenizer. Another text encoder takes the place of this module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.memory import Memory
from diffuse.models.text_encoder import gemma3
from diffuse.models.text_encoder.gemma_tokenizer import GemmaTokenizer, PaddedTokens
from diffuse.pipelines.components import Component, Role, declare, read_configs
from diffuse.text_backends.embeddings import TextEncoderIdentity, TextStates

NAME = "gemma3"  # the option of the group `text_backend` that names it
TOKENIZER, TEXT_ENCODER, CONNECTORS = "tokenizer", "text_encoder", "connectors"  # the components of a text
COMPONENTS: Mapping[str, Component] = {
    TEXT_ENCODER: Component(Role.text_encoder, gemma3.Gemma3TextModel, gemma3.Gemma3TextConfig, gemma3.rename),
    TOKENIZER: Component(Role.tokenizer),
}


class LTX2TextEncoder:
    """Encodes texts to the hidden states of all layers.

    Args:
        tokens: of a text with its padding; fewer where the tokenizer says so.
    """

    def __init__(self, checkpoint: Checkpoint, memory: Memory, tokens: int) -> None:
        self.checkpoint, self.memory = checkpoint, memory
        self.tokenizer = GemmaTokenizer.from_folder(checkpoint.part(TOKENIZER).path(TOKENIZER))
        self.tokens = min(tokens, self.tokenizer.model_max_length or tokens)

    @classmethod
    def alone(cls, checkpoint: Checkpoint, memory: Memory, tokens: int) -> LTX2TextEncoder:
        """Builds it without the rest of the pipeline, and declares its component to `memory`."""
        encoder = cls(checkpoint, memory, tokens)
        config = read_configs(COMPONENTS, checkpoint)[TEXT_ENCODER]
        declare(TEXT_ENCODER, COMPONENTS[TEXT_ENCODER], config, checkpoint, memory)
        return encoder

    def identity(self) -> TextEncoderIdentity:
        """Returns who makes the embeddings. Reads every byte of the weights."""
        return text_identity(self.checkpoint)

    def tokenize(self, texts: Sequence[str], tokens: int | None = None) -> PaddedTokens:
        """Returns the ids and the mask `[B, T]` of texts, of `tokens` in place of the usual length."""
        return self.tokenizer(texts, tokens or self.tokens)

    def read_states(self, tokens: PaddedTokens, receive: Callable[[int, Tensor], None]) -> None:
        """Calls `receive` with the number of each hidden state and the state `[B, T', D]`, as it is made."""
        device = self.memory.device(TEXT_ENCODER)
        with self.memory.use(TEXT_ENCODER) as encoder:
            encoder(tokens.ids.to(device), tokens.mask.to(device), receive)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], tokens: int | None = None) -> list[TextStates]:
        """Returns the states `[T', D]` of texts that are computed together, on the CPU.

        Args:
            tokens: of a text with its padding, where they are not the usual number.

        The bits of a state depend on what is computed with it: alone, a text has those of a local film.

        Raises:
            RunError: they cannot be computed.
        """
        padded = self.tokenize(texts, tokens)
        lengths = [max(int(row.sum()), 1) for row in padded.mask]

        def encode() -> list[list[Tensor]]:
            kept: list[list[Tensor]] = [[] for _ in texts]

            def keep(_: int, state: Tensor) -> None:
                for row, length, states in zip(state, lengths, kept, strict=True):
                    states.append(row[-length:].to("cpu", copy=True))

            self.read_states(padded, keep)
            return kept

        kept = self.memory.attempt(TEXT_ENCODER, encode, phase="encode")
        return [
            TextStates(torch.stack(states, dim=-1).flatten(1), mask.to(torch.uint8), cut)
            for states, mask, cut in zip(kept, padded.mask, padded.cut, strict=True)
        ]


def text_identity(checkpoint: Checkpoint) -> TextEncoderIdentity:
    """Returns the text encoder and the connectors of a checkpoint, as far as they are here. Reads all their bytes."""
    text_encoder, connectors = (checkpoint.part(name).digest([name]) for name in (TEXT_ENCODER, CONNECTORS))
    return TextEncoderIdentity.of_digests(text_encoder, connectors, checkpoint.source)
