"""The transformer of LTX-2 as guidance calls it: several predictions in one call, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse.models.transformer.transformer_ltx2 import Rotations
from diffuse.pipelines.ltx2_guidance import Pass
from diffuse.pipelines.ltx2_layout import join_tokens


@dataclass(frozen=True)
class TransformerCalls:
    """Calls of the transformer for the films of one batch; see `FilmDenoiser`.

    Args:
        transformer: the module.
        rotations: of all tokens, on the transformer's device.
        audio_tokens: of one film.
        audio_width: the channels of these.
        dtype: in which the transformer computes.
        stg_blocks: the blocks whose attention is perturbed.
        use_cross_timestep: see the transformer.
        batched: whether all predictions are made in one call.
        limit: the most films in one call, if there is a limit.
        clean: `[1, T]`, how far a token of the film is known: 1 where it has no noise, 0 where it is denoised.
    """

    transformer: Any
    rotations: Rotations
    audio_tokens: int
    audio_width: int
    dtype: torch.dtype
    stg_blocks: Sequence[int]
    use_cross_timestep: bool
    batched: Callable[[], bool]
    limit: Callable[[], int | None]
    clean: Tensor | None = None

    def with_known(self, clean: Tensor) -> TransformerCalls:
        """Returns the calls for films some tokens of which are known; `clean` is `[1, T]`."""
        return replace(self, clean=clean)

    def __call__(self, latents: Tensor, timestep: Tensor, passes: Sequence[Pass]) -> list[Tensor]:
        """Returns the velocity of latents `[B, T + A, C]` for each pass."""
        groups = [passes] if self.batched() else [[each] for each in passes]
        parts = latents.split(self.limit() or len(latents))
        sigma = timestep.reshape(1).float().to(latents.device)
        found: list[list[Tensor]] = [[] for _ in passes]
        for part in parts:
            velocities = [velocity for group in groups for velocity in self._predict(part, sigma, group)]
            for each, velocity in zip(found, velocities, strict=True):
                each.append(velocity)
        return [each[0] if len(each) == 1 else torch.cat(each) for each in found]

    def _predict(self, latents: Tensor, sigma: Tensor, group: Sequence[Pass]) -> Sequence[Tensor]:
        """Returns the velocity of latents `[B, T + A, C]` for each pass of a group, in one call."""
        size, count = len(latents), len(group)
        tokens = latents.to(self.dtype).repeat(count, 1, 1)
        texts = [
            torch.cat([states.expand(size, -1, -1) for states in modality])
            for modality in zip(*(each.text for each in group), strict=True)
        ]
        perturbed, isolated = ([getattr(each, name) for each in group] for name in ("perturbed", "isolated"))
        video, audio = self.transformer(
            tokens[:, : -self.audio_tokens],
            tokens[:, -self.audio_tokens :, : self.audio_width],
            texts[0],
            texts[1],
            sigma if self.clean is None else sigma * (1 - self.clean),
            self.rotations,
            sigma=sigma,
            audio_timestep=sigma,
            stg_blocks=tuple(self.stg_blocks) if any(perturbed) else (),
            stg_samples=_rows(perturbed, size, latents.device) if _differ(perturbed) else None,
            isolate_modalities=_rows(isolated, size, latents.device) if _differ(isolated) else isolated[0],
            use_cross_timestep=self.use_cross_timestep,
        )
        return join_tokens(video, audio).chunk(count)


def _differ(flags: Sequence[bool]) -> bool:
    return any(one != other for one, other in pairwise(flags))


def _rows(flags: Sequence[bool], size: int, device: torch.device) -> Tensor:
    """Returns the flag of each row of a call, `[len(flags) * size]`."""
    return torch.tensor([flag for flag in flags for _ in range(size)], device=device)
