"""A pipeline that makes films with sound, in place of a model of films: the tiny checkpoint's picture moves."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from diffuse.pipelines.stable_diffusion import StableDiffusion
from diffuse.sampling.results import DecodedMedia

FRAMES, FPS, RATE = 9, 8.0, 16000
_MODULE = "diffuse.pipelines.moving_pictures"  # where alone a configuration may name pipelines


class MovingPictures(StableDiffusion):
    """Makes films of nine frames, and a tone whose pitch is that of the picture's brightness."""

    makes_films = True
    makes_sound = True

    def decode(self, *given: Any) -> DecodedMedia:
        still = super().decode(*given).frames
        frames = np.concatenate([np.roll(still, 4 * index, axis=3) for index in range(FRAMES)], axis=1)
        return DecodedMedia(frames, FPS, self.tone(still), RATE)

    @staticmethod
    def tone(still: np.ndarray) -> np.ndarray:
        times = np.arange(round(RATE * FRAMES / FPS)) / RATE
        pitch = 220 + still.mean(axis=(1, 2, 3, 4))[:, None]
        wave = 0.5 * np.sin(2 * np.pi * pitch * times)
        return np.stack([wave, 0.5 * wave], axis=1).astype(np.float32)


class SilentPictures(MovingPictures):
    """Makes films without sound."""

    makes_sound = False

    def decode(self, *given: Any) -> DecodedMedia:
        made = super().decode(*given)
        return DecodedMedia(made.frames, made.fps)


def _register() -> None:
    module: Any = ModuleType(_MODULE)
    for family in (MovingPictures, SilentPictures):
        family.__module__ = _MODULE
        setattr(module, family.__name__, family)
    sys.modules[_MODULE] = module


_register()
FILM = ("model=tiny", f"model._target_={_MODULE}.MovingPictures")
SILENT = ("model=tiny", f"model._target_={_MODULE}.SilentPictures")
