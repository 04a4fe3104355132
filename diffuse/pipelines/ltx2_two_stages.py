"""LTX-2 in two stages: a film of half the size, which is enlarged and made finer (HaCohen et al., 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from diffuse.errors import CheckpointError
from diffuse.models.upsampler import latent_upsampler_ltx2
from diffuse.pipelines.components import Component, Role
from diffuse.pipelines.ltx2 import COMPONENTS, LTX2Distilled
from diffuse.pipelines.ltx2_guidance import Scales
from diffuse.pipelines.ltx2_layout import FilmLayout
from diffuse.pipelines.ltx2_starts import FromSmallerFilm
from diffuse.pipelines.pipeline import Stage
from diffuse.sampling.prompt_embeddings import PromptEmbeddings
from diffuse.schedulers.flow_match_euler import FlowMatchEuler
from diffuse.schema import GenerationRequest

SECOND_SIGMAS = (0.909375, 0.725, 0.421875)  # as published, with which a distilled model makes the larger film
_UPSAMPLER, _VAE = "latent_upsampler", "vae"


class StageSamplers(NamedTuple):
    """The samplers of both stages."""

    first: FlowMatchEuler
    second: FlowMatchEuler


class LTX2TwoStages(LTX2Distilled):
    """A distilled checkpoint with an upsampler, which makes a film of half the width and height first.

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
    halves: ClassVar[int] = 2

    def check_configs(self) -> None:
        """See `LTX2`; the upsampler is to double width and height."""
        super().check_configs()
        config, channels = self.configs[_UPSAMPLER], self.configs[_VAE].latent_channels
        if config.spatial_scale != 2 or config.temporal_upsample:
            raise CheckpointError(
                f"{self.checkpoint.source}: latent_upsampler/config.json: two stages need an upsampler that doubles "
                "width and height, and not the frames; set model.latent_upsampler.source to another"
            )
        if config.in_channels != channels:
            raise self.mismatch(f"the latent_upsampler takes {config.in_channels} channels, the vae gives {channels}")

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
    ) -> tuple[list[Stage], list[str]]:
        """Returns two stages, from noise, and from an image `[H, W, 3]` as the first frame: of the small film, and of
        the one that is made of it, without guidance. There is no `mask` `[H, W]`, and no `embeddings`.
        """
        self._set_stages(samplers, request)
        small, large = self.layout(request, self.halves), self.layout(request)
        guidance, warnings = self.guidance(request, small)
        start = self.start(small, None if image is None else _half(image))
        enlarged = FromSmallerFilm(
            large, lambda latents: self._enlarge(latents, small, large), keeps_first_frame=image is not None
        )
        unguided = guidance._replace(negative=None, video=Scales(), audio=Scales())
        return [
            self.stage(small, request, start, samplers.first, guidance),
            self.stage(large, request, enlarged, samplers.second, unguided),
        ], [*self.checkpoint.notes, *warnings]

    def _set_stages(self, samplers: StageSamplers, request: GenerationRequest) -> None:
        self.set_timesteps(samplers.first, request)
        samplers.second.set_timesteps(len(SECOND_SIGMAS), sigmas=SECOND_SIGMAS, mu=0.0)

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


def _half(image: np.ndarray) -> np.ndarray:
    """Returns an image `[H, W, 3]` of half the width and height."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.BILINEAR))
