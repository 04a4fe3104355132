"""Prompts of LTX-2: from a text to what the denoiser attends to, through the text encoder and the connectors.

A text's hidden states come from the model's own text encoder, or from a text backend in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.memory import Memory
from diffuse.models.text_encoder.ltx2_connectors import LTX2TextConnectorsConfig, TextEmbeddings
from diffuse.pipelines.ltx2_text_encoder import CONNECTORS, NAME, TEXT_ENCODER, LTX2TextEncoder, text_identity
from diffuse.sampling.prompt_cache import MAX_PROMPTS, PromptCache
from diffuse.text_backends.backend import TextBackend
from diffuse.text_backends.embeddings import TextEncoderIdentity, TextNeeds, TextStates

Receive = Callable[[int, Tensor], None]


class FilmPrompts:
    """Encodes texts, and keeps the results of the latest. Each text is encoded by itself.

    Args:
        denoiser: the component that takes the embeddings.
        connectors: the settings of those that the hidden states go through.
        tokens: of a text with its padding; fewer where the tokenizer says so.
        backend: gives the hidden states in place of the model's own text encoder.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        memory: Memory,
        denoiser: str,
        connectors: LTX2TextConnectorsConfig,
        tokens: int,
        backend: TextBackend | None = None,
    ) -> None:
        self.checkpoint, self.memory, self.backend = checkpoint, memory, backend
        self.encoder = LTX2TextEncoder(checkpoint, memory, tokens) if backend is None else None
        self.tokens = tokens if self.encoder is None else self.encoder.tokens
        self.connectors = connectors
        self._cache = PromptCache(memory, denoiser)
        self._states: dict[str, TextStates] = {}  # of a backend, while they are needed
        self._facts: dict[str, tuple[str, str]] = {}  # of a backend's texts: the SHA-256 of the states, the end cut off

    @property
    def vocab_size(self) -> int | None:
        """The number of ids that the tokenizer gives; None where a text backend encodes."""
        return None if self.encoder is None else self.encoder.tokenizer.vocab_size

    def check(self, texts: Sequence[str]) -> None:
        """Checks whether the backend has the embeddings of texts, as far as it can tell.

        Raises:
            ConfigError: it has not.
        """
        if self.backend is not None and self.memory.reads_weights:
            self.backend.check(texts, self._needs)

    def encode(self, texts: Sequence[str]) -> list[TextEmbeddings]:
        """Returns the embeddings of each text, `[1, T, D]` and `[1, T, D']`, where the denoiser takes them.

        Raises:
            ConfigError, RunError: the text backend does not give them.
        """
        if self.backend is not None:
            missing = self._cache.missing(CONNECTORS, texts)
            if missing and self.memory.reads_weights:  # before the connectors are loaded, and all at once
                self._states = dict(zip(missing, self.backend.encode(missing, self._needs), strict=True))
            self._keep_facts(texts)
        try:
            return [TextEmbeddings(*states) for states in self._cache.encode(CONNECTORS, texts, self._encode)]
        finally:
            self._states = {}

    def warnings(self, texts: dict[str, str]) -> list[str]:
        """Returns a line for each prompt, by its name, whose end did not fit, and those of the text backend.

        They have been encoded.
        """
        lines = []
        for name, text in texts.items():
            if self.encoder is not None:
                (cut,) = self.encoder.tokenize([text]).cut
            else:
                cut = self._facts.get(text, ("", ""))[1]
            lines += [f"the {name} is longer than {self.tokens} tokens; cut off: {cut!r}"] if cut else []
        if self.backend is not None and self.memory.reads_weights:
            lines += self.backend.check([*texts.values()], self._needs)
        return lines

    def as_record(self, texts: Sequence[str]) -> dict[str, Any]:
        """Returns which text backend encodes, and of another than the model's own the SHA-256 of the states."""
        if self.backend is None:
            return {"name": NAME}
        digests = {text.strip(): self._facts[text][0] for text in texts if text in self._facts}
        return self.backend.as_record() | ({"embeddings": digests} if digests else {})

    @cached_property
    def _needs(self) -> TextNeeds:
        """Says what the model takes."""
        config = self.connectors
        planned = not self.memory.reads_weights
        identity = TextEncoderIdentity() if planned else text_identity(self.checkpoint)
        return TextNeeds(config.caption_channels * config.text_proj_in_factor, self.tokens, identity)

    def _keep_facts(self, texts: Sequence[str]) -> None:
        """Keeps the facts of texts that are about to be used; as with the embeddings, the longest unused go first."""
        for text, states in self._states.items():
            self._facts[text] = states.digest(), states.cut
        for text in texts:
            if text in self._facts:
                self._facts[text] = self._facts.pop(text)  # to the end
        while len(self._facts) > 2 * MAX_PROMPTS:  # more than the embeddings that are kept
            del self._facts[next(iter(self._facts))]

    def _encode(self, connectors: Any, text: str) -> tuple[Tensor, ...]:
        """Encodes a text; the connectors project the encoder's states as they come, none of which is kept."""
        memory = self.memory
        mask, read_states = self._source(text)
        mask = mask.to(memory.device(CONNECTORS))

        def project() -> dict[str, Tensor]:
            projection = connectors.project(mask)
            read_states(projection.receive)
            result: dict[str, Tensor] = projection.result()
            return result

        at_work = CONNECTORS if self.encoder is None else TEXT_ENCODER
        projected = memory.attempt(at_work, project, phase="encode")
        embeddings: TextEmbeddings = connectors(projected, mask)
        return tuple(embeddings)

    def _source(self, text: str) -> tuple[Tensor, Callable[[Receive], None]]:
        """Returns the mask `[1, T]` of a text, and what hands its hidden states `[1, T', D]` to a function."""
        encoder = self.encoder
        if encoder is not None:
            tokens = encoder.tokenize([text])
            return tokens.mask, lambda receive: encoder.read_states(tokens, receive)
        config = self.connectors
        if not self.memory.reads_weights:  # as many as there can be
            device = self.memory.device(CONNECTORS)
            states = torch.empty(self.tokens, self._needs.width, dtype=torch.bfloat16, device=device)
            return torch.ones(1, self.tokens, dtype=torch.int64), lambda receive: _hand_over(states, config, receive)
        found = self._states[text]
        return found.mask.long()[None], lambda receive: _hand_over(found.states, config, receive)


def _hand_over(states: Tensor, config: LTX2TextConnectorsConfig, receive: Receive) -> None:
    """Hands the states `[T', D * L]`, the layer fastest, to a function one after the other, `[1, T', D]` each."""
    layers = states.unflatten(1, (config.caption_channels, config.text_proj_in_factor))
    for number in range(config.text_proj_in_factor):
        receive(number, layers[None, ..., number].contiguous())
