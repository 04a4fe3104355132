"""Noise in place of embeddings, for tests of everything behind the text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from diffuse.text_backends.embeddings import TextNeeds, TextStates

_TOKENS = 8  # of any prompt


class RandomTexts:
    """Draws the states of a prompt from a seed and the prompt."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @property
    def key(self) -> list[Any]:
        """All that determines the embeddings."""
        return [self.name, self.seed]

    def check(self, prompts: Sequence[str], needs: TextNeeds) -> list[str]:
        """Returns a line that says that the prompts count for nothing."""
        return ["text_backend=random: the embeddings are noise, for tests; the film has nothing to do with its prompt"]

    def encode(self, prompts: Sequence[str], needs: TextNeeds) -> list[TextStates]:
        """Returns states `[T', D]` of each prompt, in float32, the same for the same prompt."""
        return [self._draw(prompt.strip(), needs) for prompt in prompts]

    def as_record(self) -> dict[str, Any]:
        """Returns the seed, for the record."""
        return {"name": self.name, "seed": self.seed}

    def _draw(self, prompt: str, needs: TextNeeds) -> TextStates:
        digest = hashlib.sha256(f"{self.seed}:{prompt}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
        tokens = min(_TOKENS, needs.max_sequence_length)
        mask = torch.zeros(needs.max_sequence_length, dtype=torch.uint8)
        mask[-tokens:] = 1
        return TextStates(torch.randn(tokens, needs.width, generator=generator), mask)
