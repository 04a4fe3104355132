"""The refiner of Stable Diffusion XL, trained on little noise alone (Podell et al., 2023, section 2.5): it paints the
details of a picture that is already there. It reads the second text encoder only, and is told how well the picture
should please."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffuse.errors import ConfigError
from diffuse.pipelines.latent_diffusion import LatentPipeline
from diffuse.pipelines.stable_diffusion_xl import StableDiffusionXL, Texts, filled
from diffuse.schema import GenerationRequest

AESTHETIC_SCORE = 6.0  # of 10, as the reference has them
NEGATIVE_AESTHETIC_SCORE = 2.5


class StableDiffusionXLRefiner(StableDiffusionXL):
    """A checkpoint of this family: a denoiser for image-to-image, or for the last steps after SDXL's own."""

    components = ("text_encoder_2", "tokenizer_2", "unet", "vae")
    request_fields = LatentPipeline.request_fields | {
        "original_width",
        "original_height",
        "crop_left",
        "crop_top",
        "aesthetic_score",
        "negative_aesthetic_score",
    }
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder_2": "tokenizer_2"}
    told = "four sizes, an aesthetic score"
    told_values = 5

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Where nothing else is said, the picture is uncropped and pleases as training pictures do."""
        return filled(
            request,
            original_width=request.width,
            original_height=request.height,
            crop_left=0,
            crop_top=0,
            aesthetic_score=AESTHETIC_SCORE,
            negative_aesthetic_score=NEGATIVE_AESTHETIC_SCORE,
        )

    def check(self, request: GenerationRequest) -> None:
        """Refuses to start from noise alone, which this denoiser has not learned to take away."""
        super().check(request)
        if not request.input_image:
            raise ConfigError(
                f"model.source={self.checkpoint.source}: refines pictures; add input_image=FILE, or make one with "
                "model=sdxl refiner=sdxl"
            )

    def texts(self, request: GenerationRequest) -> Texts:
        """The first prompt: a second one is for SDXL's own denoiser."""
        return (request.prompt,)

    def negative_texts(self, request: GenerationRequest) -> Texts | None:
        """The first negative prompt."""
        return None if request.negative_prompt is None else (request.negative_prompt,)

    def time_ids(self, request: GenerationRequest, negative: bool) -> list[Any]:
        """Sizes, and the aesthetic score in the place of the target size."""
        score = request.negative_aesthetic_score if negative else request.aesthetic_score
        return [request.original_height, request.original_width, request.crop_top, request.crop_left, score]
