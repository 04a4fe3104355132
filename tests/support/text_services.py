"""Text encoders that take no time, and services on them in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from processes import LIMIT

from diffuse.service.serve import TextServer
from diffuse.service.settings import ServiceSettings
from diffuse.text_backends.api import ApiTexts
from diffuse.text_backends.embeddings import Embeddings, TextEncoderIdentity, TextNeeds, TextStates

WIDTH, TOKENS = 12, 32
IDENTITY = TextEncoderIdentity("a" * 64, "b" * 64, "somewhere")
NEEDS = TextNeeds(WIDTH, TOKENS, IDENTITY)


class LetterEncoder:
    """A token for each letter, whose states are drawn from the prompt."""

    def __init__(self, width: int = WIDTH) -> None:
        self.width, self.tokens = width, TOKENS
        self.begun = threading.Semaphore(0)  # once a call
        self.gate = threading.Event()  # held up while it is not set
        self.gate.set()
        self.calls: list[list[str]] = []

    def identity(self) -> TextEncoderIdentity:
        return IDENTITY

    def encode(self, texts: Sequence[str], tokens: int | None = None) -> list[TextStates]:
        self.calls.append([*texts])
        self.begun.release()
        assert self.gate.wait(LIMIT)
        if "fail" in texts:
            raise ValueError("no such word")
        return [self.states(text, tokens or TOKENS) for text in texts]

    def states(self, text: str, tokens: int = TOKENS) -> TextStates:
        length = min(len(text) + 1, tokens)
        generator = torch.Generator("cpu").manual_seed(len(text) + sum(map(ord, text)))
        mask = torch.zeros(tokens, dtype=torch.uint8)
        mask[-length:] = 1
        states = torch.randn(length, self.width, generator=generator)
        if text == "nan":
            states[0, 0] = float("nan")
        return TextStates(states, mask, text[tokens - 1 :])


def embeddings(*prompts: str) -> Embeddings:
    return Embeddings(prompts, [LetterEncoder().states(each) for each in prompts], TOKENS, IDENTITY)


@contextmanager
def running(encoder: Any, token: str | None = None, **settings: Any) -> Iterator[TextServer]:
    """A service that answers in a thread until the block ends, if it has not ended by then."""
    server = TextServer(encoder, ServiceSettings(**{"port": 0, **settings}), token)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def client(server: TextServer, **options: Any) -> ApiTexts:
    return ApiTexts(server.url, **{"retries": 0, "timeout": LIMIT, **options})
