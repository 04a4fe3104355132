"""The prompt cache: an encoder is used for new prompts alone, and the oldest prompts go first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from diffuse.device.memory import Memory
from diffuse.sampling import prompt_cache
from diffuse.sampling.prompt_cache import PromptCache


class CountingMemory:
    """Stands where the memory of a pipeline does, and counts how often an encoder was used."""

    def __init__(self) -> None:
        self.uses: list[str] = []

    def device(self, name: str) -> torch.device:
        return torch.device("cpu")

    def dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16 if name == "transformer" else torch.float32

    def patch_key(self, name: str) -> str:
        return ""

    @contextmanager
    def use(self, name: str) -> Iterator[str]:
        self.uses.append(name)
        yield name

    def attempt(self, name: str, compute: Callable[[], None], *, phase: str) -> None:
        compute()


def encode(module: Any, prompt: tuple[str, ...]) -> tuple[Tensor, ...]:
    return (torch.tensor([[float(len(module + prompt[0]))]]),)


def test_each_prompt_is_encoded_once() -> None:
    memory = CountingMemory()
    cache = PromptCache(cast(Memory, memory), "transformer")
    first = cache.encode("encoder", [("a",), ("bcd",), ("a",)], encode)
    again = cache.encode("encoder", [("bcd",)], encode)
    assert memory.uses == ["encoder"]
    assert [float(state[0]) for state in (*first, *again)] == [8, 10, 8, 10]
    assert first[0][0].dtype == torch.bfloat16, "states are kept as the denoiser takes them"
    cache.encode("encoder_2", [("a",)], encode)
    assert memory.uses == ["encoder", "encoder_2"], "another encoder has states of its own"


def test_the_oldest_prompts_go() -> None:
    memory = CountingMemory()
    cache = PromptCache(cast(Memory, memory), "transformer")
    prompts = [(f"prompt {number}",) for number in range(prompt_cache.MAX_PROMPTS + 1)]
    cache.encode("encoder", prompts, encode)
    cache.encode("encoder", prompts[1:], encode)
    assert len(memory.uses) == 1
    cache.encode("encoder", prompts[:1], encode)
    assert len(memory.uses) == 2
