"""Keeps the outputs of the text encoders for the latest prompts: the jobs of a sweep encode each prompt once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from diffuse.device.memory import Memory

MAX_PROMPTS = 64  # of all encoders together; those of SDXL take 0.6 MB a chunk of 77 tokens

States = tuple[Tensor, ...]
Prompt = TypeVar("Prompt", bound=Hashable)


class PromptCache:
    """Encodes prompts, and keeps the results where the denoiser takes them, in its precision.

    The states of a prompt must not depend on what else is encoded with it.
    """

    def __init__(self, memory: Memory, denoiser: str) -> None:
        self.memory = memory
        self.denoiser = denoiser  # the component that takes the states
        self._states: OrderedDict[tuple[str, str, Hashable], States] = OrderedDict()

    def missing(self, encoder: str, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Returns those of the prompts, each once, whose states `encode` would have to make."""
        patch = self.memory.patch_key(encoder)
        return [prompt for prompt in dict.fromkeys(prompts) if (encoder, patch, prompt) not in self._states]

    def encode(self, encoder: str, prompts: Sequence[Prompt], encode: Callable[[Any, Prompt], States]) -> list[States]:
        """Returns the states of each prompt, `[1, ...]` each.

        The encoder is neither loaded nor moved where all prompts are known.

        Args:
            encoder: the name of the component.
            prompts: all that determines their states.
            encode: called with the encoder's module and a prompt that is not known.
        """
        patch = self.memory.patch_key(encoder)
        keys = [(encoder, patch, prompt) for prompt in prompts]
        states = {key: self._states[key] for key in keys if key in self._states}
        if len(states) < len(set(keys)):
            device, dtype = self.memory.device(self.denoiser), self.memory.dtype(self.denoiser)

            def encode_missing() -> None:
                with self.memory.use(encoder) as module:
                    for key, prompt in zip(keys, prompts, strict=True):
                        if key not in states:
                            states[key] = tuple(state.to(device, dtype) for state in encode(module, prompt))

            self.memory.attempt(encoder, encode_missing, phase="encode")
        for key in keys:
            self._states[key] = states[key]
            self._states.move_to_end(key)
        while len(self._states) > MAX_PROMPTS:
            self._states.popitem(last=False)
        return [states[key] for key in keys]
