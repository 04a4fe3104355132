"""The refiner of Stable Diffusion XL, trained on little noise alone (Podell et al., 2023, section 2.5).

It paints the details of an image that is already there, reads the second text encoder only, and takes an aesthetic
score in the place of the target size.
"""

from __future__ import annotations

from typing import Any

from diffuse.errors import ConfigError
from diffuse.pipelines.latent_diffusion import CLIP_WITH_PROJECTION, TOKENIZER, UNET, VAE, LatentDiffusion
from diffuse.pipelines.stable_diffusion_xl import StableDiffusionXL, Texts, fill
from diffuse.schema import GenerationRequest

AESTHETIC_SCORE = 6.0  # of 10, as the reference has them
NEGATIVE_AESTHETIC_SCORE = 2.5


class StableDiffusionXLRefiner(StableDiffusionXL):
    """A checkpoint of this family: a denoiser for image-to-image, or for the last steps after SDXL's own."""

    components = {  # noqa: RUF012
        "text_encoder_2": CLIP_WITH_PROJECTION,
        "tokenizer_2": TOKENIZER,
        "unet": UNET,
        "vae": VAE,
    }
    request_fields = LatentDiffusion.request_fields | {
        "clip_skip",
        "original_width",
        "original_height",
        "crop_left",
        "crop_top",
        "aesthetic_score",
        "negative_aesthetic_score",
    }
    time_id_names = "four sizes, an aesthetic score"
    time_id_count = 5

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """Fills the fields that are open: the image is uncropped, and pleases as training images do."""
        return fill(
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
        """Returns the first prompt: a second one is for SDXL's own denoiser."""
        return (request.prompt,)

    def negative_texts(self, request: GenerationRequest) -> Texts | None:
        """Returns the first negative prompt."""
        return None if request.negative_prompt is None else (request.negative_prompt,)

    def time_ids(self, request: GenerationRequest, negative: bool) -> list[Any]:
        """Returns the sizes, and the aesthetic score in the place of the target size."""
        score = request.negative_aesthetic_score if negative else request.aesthetic_score
        return [request.original_height, request.original_width, request.crop_top, request.crop_left, score]
