"""The state that a film starts from: noise, noise with a known first frame, or a film of half the size.

Noise is drawn in the order of the reference, diffusers' pipelines, so that a seed gives the same film.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffuse.pipelines.ltx2_layout import FilmLayout
from diffuse.sampling.denoise import initial_noise
from diffuse.sampling.start import Generators, InitialState, Start
from diffuse.schedulers.sampler import State

EnlargeLatents = Callable[[Tensor], Tensor]
"""Makes of a film's tokens with its sound's, `[B, T + A, C]`, those of a larger one."""


@dataclass(frozen=True)
class FromFilmNoise:
    """Starts from noise: a prompt alone."""

    layout: FilmLayout

    def begin(self, sampler: Any, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`; `latents` are `[B, T + A, C]`."""
        return InitialState(self.layout.draw_noise(generators) if latents is None else latents, sampler)


@dataclass(frozen=True)
class FromSmallerFilm:
    """Goes on from the film that an earlier stage left: enlarges it, and adds the noise that the first sigma asks for.

    Args:
        keeps_first_frame: its first frame is known, and gets none.
    """

    layout: FilmLayout
    enlarge: EnlargeLatents
    keeps_first_frame: bool = False

    def begin(self, sampler: Any, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`; `latents` are those of the stage before."""
        assert latents is not None
        original = self.enlarge(latents)
        layout = self.layout
        # The reference draws in the shape of what it has at hand, which is packed where no frame is kept.
        audio_shape = layout.audio_frames, layout.audio_width
        if self.keeps_first_frame:
            video = layout.draw_video(generators)
        else:
            video = initial_noise((layout.video_tokens, layout.channels), generators)
        noise = layout.join(video, initial_noise(audio_shape, generators)).to(original)
        noisy = sampler.add_noise(original, noise, 0)
        if not self.keeps_first_frame:
            return InitialState(noisy, sampler)
        known = layout.frame_tokens
        clean = first_frame_known(layout, original.device)
        return KnownTokens(ReadyLatents(noisy), original[:, :known], clean).begin(sampler, generators, latents)


@dataclass(frozen=True)
class KnownTokens:
    """Starts with some tokens of the film that are known, as far as `clean` says, and brings them back at each step.

    Args:
        start: of all tokens.
        tokens: the known ones, the first of the film, `[1, K, C]` or `[B, K, C]`.
        clean: `[1, T]` of the film's tokens: 1 where a token is to stay as it is, 0 where it is denoised freely.
        mixes: puts the known tokens in the start, which otherwise has them.
    """

    start: Start
    tokens: Tensor
    clean: Tensor
    mixes: bool = True

    def begin(self, sampler: Any, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`."""
        state = self.start.begin(sampler, generators, latents)
        known = self.tokens.shape[1]
        share = self.clean[:, :known, None]
        noisy = state.latents
        if self.mixes:
            mixed = self.tokens * share + noisy[:, :known].to(self.tokens) * (1 - share)
            noisy = torch.cat((mixed, noisy[:, known:].to(mixed)), dim=1)
        return state._replace(
            latents=noisy,
            stepper=_KeepTokens(sampler, self.tokens, share),
            wrap=lambda calls: calls.with_known(self.clean),  # type: ignore[attr-defined]
        )


class _KeepTokens:
    """Steps of a sampler for which the clean latents of known tokens are those that are known, as far as `share` says.

    The scheme of HaCohen et al., 2026: what the model predicts of a known token counts for the rest alone.
    """

    def __init__(self, sampler: Any, tokens: Tensor, share: Tensor) -> None:
        self.timesteps, self.sigmas = sampler.timesteps, sampler.sigmas
        self.scale_model_input = sampler.scale_model_input
        self.sampler, self.tokens, self.share = sampler, tokens, share

    def step(self, model_output: Tensor, index: int, state: State, generators: Generators | None) -> State:
        """Makes one step down from `state` by the velocity `model_output`, `[B, T + A, C]`."""
        known, sigma = self.tokens.shape[1], self.sigmas[index]
        sample = state.sample[:, :known]
        predicted = sample - model_output[:, :known] * sigma
        clean = predicted * (1 - self.share) + self.tokens * self.share
        velocity = torch.cat(((sample - clean) / sigma, model_output[:, known:]), dim=1)
        stepped: State = self.sampler.step(velocity, index, state, generators)
        return stepped


@dataclass(frozen=True)
class ReadyLatents:
    """Starts from latents `[B, T + A, C]` that are as noisy as the first step asks."""

    latents: Tensor

    def begin(self, sampler: Any, generators: Generators, latents: Tensor | None) -> InitialState:
        """Returns the latents as they are, `[B, T + A, C]`."""
        return InitialState(self.latents, sampler)


def first_frame_known(layout: FilmLayout, device: torch.device) -> Tensor:
    """Returns `[1, T]`: 1 at the tokens of the film's first frame, and 0 elsewhere."""
    return (torch.arange(layout.video_tokens, device=device) < layout.frame_tokens).float()[None]
