"""Frames that a film is given: a picture at any of its frames, a last picture, or the end of a clip to go on from.

The scheme of HaCohen et al., 2026, in the order of diffusers' `LTX2ConditionPipeline`. Frames at the beginning stand in
the place of the film's own tokens. Others are appended as further tokens, whose place is that of their frame, and left
out of the result. Each is kept as far as its strength says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffuse.errors import ConfigError
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig
from diffuse.models.transformer.ltx2_coordinates import keyframe_coordinates
from diffuse.pipelines.ltx2_layout import FilmLayout
from diffuse.pipelines.ltx2_starts import EnlargeLatents, KnownTokens, ReadyLatents
from diffuse.sampling.denoise import initial_noise
from diffuse.sampling.start import Generators, InitialState
from diffuse.schema import GenerationRequest


@dataclass(frozen=True)
class FramesAt:
    """Says where frames stand in a film, and how far they are kept."""

    index: int  # of the first of them, in frames of pixels
    count: int  # of frames of pixels
    strength: float

    @property
    def is_appended(self) -> bool:
        """Tells whether they are further tokens."""
        return self.index > 0


def given_frames(request: GenerationRequest, step: int) -> list[FramesAt]:
    """Returns where the frames of a request stand, those that begin the film first.

    An `input_image` alone, with neither a strength nor a place, is none of them: it is kept as it is.

    Args:
        step: the frames of pixels that one of the latents stands for.
    """
    assert request.num_frames is not None
    strength = 1.0 if request.conditioning_strength is None else request.conditioning_strength
    places = []
    if request.input_video:
        assert request.num_conditioning_frames is not None
        places.append(FramesAt(0, request.num_conditioning_frames, strength))
    elif request.input_image and not is_first_frame_alone(request):
        places.append(FramesAt((request.frame_index or 0) % request.num_frames, 1, strength))
    if request.last_image:
        last = strength if request.last_image_strength is None else request.last_image_strength
        # As diffusers' index -1, which is the last frame of the latents.
        places.append(FramesAt(request.num_frames - step, 1, last))
    return places


def is_first_frame_alone(request: GenerationRequest) -> bool:
    """Tells whether an `input_image` is the first frame as it is, and the film is given nothing else."""
    others = request.input_video, request.last_image, request.conditioning_strength, request.frame_index
    return bool(request.input_image) and not any(others)


def appended_tokens(request: GenerationRequest, layout: FilmLayout) -> int:
    """Returns how many tokens the frames of a request add to a film's: those of whole frames of the latents."""
    return sum(place.is_appended for place in given_frames(request, 1)) * layout.frame_tokens  # pictures, all of them


def check_given_frames(request: GenerationRequest, step: int) -> None:
    """Checks where the frames of a request stand.

    Raises:
        ConfigError: there is no such frame, or nothing is left to make.
    """
    frames, index, taken = request.num_frames, request.frame_index, request.num_conditioning_frames
    assert frames is not None
    if index is not None and not -frames <= index < frames:
        raise ConfigError(f"frame_index={index}: a film of num_frames={frames} has the frames 0 to {frames - 1}")
    if request.last_image and frames <= step:
        raise ConfigError(f"last_image: is one of several frames, and num_frames={frames}; make it {step + 1} at least")
    if not request.input_video or taken is None:
        return
    if (taken - 1) % step:
        fewer = (taken - 1) // step * step + 1  # which the clip has, whether the user or its length said `taken`
        raise ConfigError(
            f"num_conditioning_frames={taken}: this checkpoint needs a multiple of {step}, and one more; try {fewer}, "
            f"or with a clip that is long enough {fewer + step}"
        )
    if taken >= frames:
        raise ConfigError(
            f"num_conditioning_frames={taken}: leaves nothing to make of num_frames={frames}, which counts them too; "
            f"make num_frames {taken + step} at least"
        )


@dataclass(frozen=True)
class GivenTokens:
    """The tokens of a film that are given, and the places of those that are appended.

    Args:
        tokens: `[1, T + K, C]`, normalised, zero where none is given.
        share: `[1, T + K]`, how far a token is kept; 0 where none is given.
        places: of the last `K`, `[K, 3]`; see `keyframe_coordinates`.
    """

    tokens: Tensor
    share: Tensor
    places: Tensor


def give_tokens(
    request: GenerationRequest, layout: FilmLayout, encoded: Sequence[Tensor], config: LTX2VideoTransformer3DConfig
) -> GivenTokens:
    """Puts the encoded frames of a request, tokens `[1, K, C]` each, where they stand in a film."""
    device = encoded[0].device
    step = config.vae_scale_factors[0]
    tokens = torch.zeros(1, layout.video_tokens, layout.channels, device=device)
    share = torch.zeros(1, layout.video_tokens, device=device)
    more, more_shares, places = [tokens], [share], [torch.empty(0, 3, device=device)]
    for place, each in zip(given_frames(request, step), encoded, strict=True):
        if not place.is_appended:
            tokens[:, : each.shape[1]], share[:, : each.shape[1]] = each, place.strength
            continue
        more.append(each)
        more_shares.append(torch.full(each.shape[:2], place.strength, device=device))
        places.append(
            keyframe_coordinates(
                each.shape[1] // layout.frame_tokens,
                layout.rows,
                layout.columns,
                fps=layout.fps,
                index=place.index,
                single=place.count == 1,
                scale_factors=config.vae_scale_factors,
            ).to(device)
        )
    return GivenTokens(torch.cat(more, dim=1), torch.cat(more_shares, dim=1), torch.cat(places))


@dataclass(frozen=True)
class FromGivenFrames:
    """Starts from noise, or from the film that an earlier stage left, with tokens that are given.

    Noise is drawn for all tokens in the order of the reference: the film's with those that are appended, then the
    sound's, both packed.

    Args:
        noise_scale: how much noise there is at first, of 1; the rest is what is given, or the earlier film.
        enlarge: where there is an earlier stage.
    """

    layout: FilmLayout
    conditions: GivenTokens
    noise_scale: float = 1.0
    enlarge: EnlargeLatents | None = None

    def begin(self, sampler: object, generators: Generators, latents: Tensor | None) -> InitialState:
        """See `Start`; `latents` are `[B, T + A, C]`: noise, or those of the stage before."""
        layout, tokens, share = self.layout, self.conditions.tokens, self.conditions.share[..., None]
        film = initial_noise((tokens.shape[1], layout.channels), generators).to(tokens)
        sound = initial_noise((layout.audio_frames, layout.audio_width), generators).to(tokens)
        original = torch.zeros_like(film)
        if self.enlarge is not None:
            assert latents is not None
            video, audio = (part.to(tokens) for part in layout.split(self.enlarge(latents)))
            original[:, : layout.video_tokens] = video
            sound = sound * self.noise_scale + audio * (1 - self.noise_scale)
        elif latents is not None:
            film[:, : layout.video_tokens], sound = (part.to(tokens) for part in layout.split(latents))
        original = torch.where(share > 0, tokens, original)
        scale = (1 - share) * self.noise_scale
        ready = ReadyLatents(layout.join(film * scale + original * (1 - scale), sound))
        return KnownTokens(ready, tokens, self.conditions.share, mixes=False).begin(sampler, generators, latents)


def as_pixels(frames: np.ndarray) -> Tensor:
    """Returns frames `[F, H, W, 3]`, uint8, as pixels `[1, 3, F, H, W]` in -1..1."""
    return torch.tensor(frames).permute(3, 0, 1, 2)[None].float() / 255 * 2 - 1
