"""LTX-2 in two stages: a smaller film, which is enlarged and made finer (HaCohen et al., 2026).

The checkpoint's latent upsampler says what smaller is: fewer rows and columns, half the frames a second, or both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from diffuse.errors import CheckpointError
from diffuse.models.upsampler import latent_upsampler_ltx2
from diffuse.pipelines.components import Component, Role
from diffuse.pipelines.ltx2 import LTX2Distilled
from diffuse.pipelines.ltx2_components import COMPONENTS
from diffuse.pipelines.ltx2_conditions import FromGivenFrames
from diffuse.pipelines.ltx2_guidance import Scales
from diffuse.pipelines.ltx2_layout import FilmLayout
from diffuse.pipelines.ltx2_starts import FromSmallerFilm
from diffuse.pipelines.pipeline import Stage
from diffuse.sampling.prompt_embeddings import PromptEmbeddings
from diffuse.sampling.start import Start
from diffuse.schedulers.flow_match_euler import FlowMatchEuler
from diffuse.schema import GenerationRequest

SECOND_SIGMAS = (0.909375, 0.725, 0.421875)  # as published, with which a distilled model makes the larger film
_UPSAMPLER, _VAE = "latent_upsampler", "vae"


class StageSamplers(NamedTuple):
    """The samplers of both stages."""

    first: FlowMatchEuler
    second: FlowMatchEuler


class LTX2TwoStages(LTX2Distilled):
    """A distilled checkpoint with an upsampler, which makes a smaller film first.

    Raises:
        CheckpointError: the upsampler does not fit.
    """

    components = {  # noqa: RUF012
        **COMPONENTS,
        _UPSAMPLER: Component(
            Role.upsampler,
            latent_upsampler_ltx2.LTX2LatentUpsamplerModel,
            latent_upsampler_ltx2.LTX2LatentUpsamplerConfig,
            latent_upsampler_ltx2.rename,
        ),
    }

    def check_configs(self) -> None:
        """See `LTX2`; the upsampler is to make films larger."""
        super().check_configs()
        config, channels = self.configs[_UPSAMPLER], self.configs[_VAE].latent_channels
        if config.spatial_scale < 1:
            raise CheckpointError(
                f"{self.checkpoint.source}: latent_upsampler/config.json: rational_spatial_scale="
                f"{config.rational_spatial_scale:g} makes films smaller; set model.latent_upsampler.source to another"
            )
        if config.in_channels != channels:
            raise self.mismatch(f"the latent_upsampler takes {config.in_channels} channels, the vae gives {channels}")

    @property
    def _scale(self) -> Fraction:
        """The rows and columns of the film for one of the smaller film's."""
        return Fraction(self.configs[_UPSAMPLER].spatial_scale)

    @property
    def _pace(self) -> int:
        """The frames of the film for one of the smaller film's."""
        return 2 if self.configs[_UPSAMPLER].temporal_upsample else 1

    def multiples(self) -> tuple[int, int]:
        """See `LTX2`: those of both films."""
        side, frames = super().multiples()
        return side * self._scale.numerator, frames * self._pace

    def first_request(self, request: GenerationRequest) -> GenerationRequest:
        """Returns the request of the smaller film, of which all that happens takes as long."""
        scale, pace = self._scale, self._pace
        frames, fps, taken = request.num_frames, request.fps, request.num_conditioning_frames
        assert frames is not None and fps is not None
        index = None if request.frame_index is None else request.frame_index % frames
        return replace(
            request,
            width=int(request.width / scale),
            height=int(request.height / scale),
            num_frames=(frames - 1) // pace + 1,
            fps=fps / pace,
            frame_index=max(index // pace, 1) if index else index,
            num_conditioning_frames=None if taken is None else (taken - 1) // pace + 1,
        )

    def plan(self, request: GenerationRequest, options: Mapping[str, Any]) -> StageSamplers:
        """See `DiffusionPipeline`."""
        samplers = StageSamplers(self.sampler(options), self.sampler(options))
        self._set_stages(samplers, request)
        return samplers

    def stages(
        self,
        request: GenerationRequest,
        samplers: Any,
        image: np.ndarray | None,
        mask: np.ndarray | None,
        embeddings: PromptEmbeddings | None = None,
        last_image: np.ndarray | None = None,
    ) -> tuple[list[Stage], list[str]]:
        """Returns two stages, from noise, and from frames that the film is given: of the smaller film, and of the one
        that is made of it, without guidance. There is no `mask` `[H, W]`, and no `embeddings`.
        """
        self._set_stages(samplers, request)
        first = self.first_request(request)
        small, large = self.first_layout(request), self.layout(request)
        guidance, warnings = self.guidance(request, small)
        reduced = [self._smaller(each, first) for each in (image, last_image)]
        start = self.start(small, first, *reduced)
        enlarge = partial(self._enlarge, small=small, large=large)
        enlarged: Start = FromSmallerFilm(large, enlarge, keeps_first_frame=image is not None)
        if isinstance(start, FromGivenFrames):
            given = self.start_given(large, request, image, last_image)
            enlarged = replace(given, noise_scale=SECOND_SIGMAS[0], enlarge=enlarge)
        unguided = guidance._replace(negative=None, video=Scales(), audio=Scales())
        return [
            self.stage(small, request, start, samplers.first, guidance),
            self.stage(large, request, enlarged, samplers.second, unguided),
        ], [*self.checkpoint.notes, *warnings]

    def _set_stages(self, samplers: StageSamplers, request: GenerationRequest) -> None:
        self.set_timesteps(samplers.first, request)
        samplers.second.set_timesteps(len(SECOND_SIGMAS), sigmas=SECOND_SIGMAS, mu=0.0)

    def _smaller(self, image: np.ndarray | None, request: GenerationRequest) -> np.ndarray | None:
        """Returns a picture `[H, W, 3]`, or the frames of a clip `[F, H, W, 3]`, as the smaller film has them."""
        if image is None:
            return None
        size = request.width, request.height
        frames = image[:: self._pace] if image.ndim == 4 else image[None]
        resized = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BILINEAR)) for each in frames]
        return np.stack(resized) if image.ndim == 4 else resized[0]

    def _enlarge(self, tokens: Tensor, small: FilmLayout, large: FilmLayout) -> Tensor:
        """Returns tokens `[B, T + A, C]` of a small film as those of a large one; the sound's stay as they are."""
        memory = self.memory
        video, audio = small.split(tokens.float())

        def enlarge() -> Tensor:
            with memory.use(_VAE) as vae:
                z = vae.denormalized(small.unpack_video(video.to(memory.device(_VAE))))
                device, dtype = memory.device(_UPSAMPLER), memory.dtype(_UPSAMPLER)
                with memory.use(_UPSAMPLER) as upsampler:
                    z = upsampler(z.to(device, dtype)).float()
                result: Tensor = vae.normalized(z.to(memory.device(_VAE)))
            return result

        enlarged = large.pack_video(memory.attempt(_UPSAMPLER, enlarge, phase="encode"))
        return large.join(enlarged.to(audio.device), audio)
