"""Callbacks: the only way in which a run calls outward while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffuse.sampling.results import Step
from diffuse.terminal import say


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called while a run goes on."""

    on_step: Callable[[Step], None] | None = None
    on_saved: Callable[[Path], None] | None = None
    messages: bool = True  # a progress bar, and lines, on standard error

    def say(self, line: str) -> None:
        """Prints a line for the user, unless messages are off."""
        if self.messages:
            say(line)
