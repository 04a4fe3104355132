"""Prompts of LTX-2: from a text to what the denoiser attends to, through the text encoder and the connectors.

Nothing else knows which text encoder there is, or that there is one: `FilmPrompts` alone turns texts into embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.device.memory import Memory
from diffuse.models.text_encoder.gemma_tokenizer import GemmaTokenizer
from diffuse.models.text_encoder.ltx2_connectors import TextEmbeddings
from diffuse.sampling.prompt_cache import PromptCache

TOKENIZER, TEXT_ENCODER, CONNECTORS = "tokenizer", "text_encoder", "connectors"  # the components that are used here


class FilmPrompts:
    """Encodes texts, and keeps the results of the latest. Each text is encoded by itself.

    Args:
        denoiser: the component that takes the embeddings.
        tokens: of a text with its padding; fewer where the tokenizer says so.
    """

    def __init__(self, checkpoint: Checkpoint, memory: Memory, denoiser: str, tokens: int) -> None:
        self.memory = memory
        self.tokenizer = GemmaTokenizer.from_folder(checkpoint.part(TOKENIZER).path(TOKENIZER))
        self.tokens = min(tokens, self.tokenizer.model_max_length or tokens)
        self._cache = PromptCache(memory, denoiser)

    def encode(self, texts: Sequence[str]) -> list[TextEmbeddings]:
        """Returns the embeddings of each text, `[1, T, D]` and `[1, T, D']`, where the denoiser takes them."""
        return [TextEmbeddings(*states) for states in self._cache.encode(CONNECTORS, texts, self._encode)]

    def cut_warnings(self, name: str, text: str) -> list[str]:
        """Returns a line that shows the end of the prompt `name` that did not fit, or nothing."""
        (cut,) = self.tokenizer([text], self.tokens).cut
        return [f"the {name} is longer than {self.tokens} tokens; cut off: {cut!r}"] if cut else []

    def _encode(self, connectors: Any, text: str) -> tuple[Tensor, ...]:
        """Encodes a text; the connectors project the encoder's states as they come, none of which is kept."""
        memory = self.memory
        ids, mask, _ = self.tokenizer([text], self.tokens)

        def project() -> dict[str, Tensor]:
            projection = connectors.project(mask.to(memory.device(CONNECTORS)))
            device = memory.device(TEXT_ENCODER)
            with memory.use(TEXT_ENCODER) as encoder:
                encoder(ids.to(device), mask.to(device), projection.receive)
            result: dict[str, Tensor] = projection.result()
            return result

        projected = memory.attempt(TEXT_ENCODER, project, phase="encode")
        embeddings: TextEmbeddings = connectors(projected, mask.to(memory.device(CONNECTORS)))
        return tuple(embeddings)
