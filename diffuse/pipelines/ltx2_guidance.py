"""Guidance of a film and its sound: by the prompt, by perturbed attention, and by each of the two towards the other.

Sources: HaCohen et al., "LTX-2: Efficient Joint Audio-Visual Foundation Model", 2026; Hyung et al., "Spatiotemporal
Skip Guidance for Enhanced Video Diffusion Sampling", 2024. All of it is done on the clean latents that a velocity
predicts, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from diffuse.models.text_encoder.ltx2_connectors import TextEmbeddings
from diffuse.schema import GenerationRequest


class Pass(NamedTuple):
    """One prediction that guidance needs."""

    text: TextEmbeddings  # [1, ...] each
    perturbed: bool = False  # the attention of some blocks
    isolated: bool = False  # film and sound from one another


class FilmDenoiser(Protocol):
    """A denoiser: latents `[B, T + A, C]`, a timestep and passes -> a velocity of the latents' shape for each pass."""

    def __call__(self, latents: Tensor, timestep: Tensor, passes: Sequence[Pass]) -> list[Tensor]: ...


class Scales(NamedTuple):
    """The scales of one modality. At these values each has no effect."""

    guidance: float = 1.0
    rescale: float = 0.0
    modality: float = 1.0
    stg: float = 0.0

    def apply(
        self, positive: Tensor, negative: Tensor | None, perturbed: Tensor | None, isolated: Tensor | None
    ) -> Tensor:
        """Returns the guided clean latents of a modality's predictions, all of them `[B, T, C]`."""
        guided = positive
        if negative is not None:
            guided = guided + (self.guidance - 1) * (positive - negative)
        if perturbed is not None:
            guided = guided + self.stg * (positive - perturbed)
        if isolated is not None:
            guided = guided + (self.modality - 1) * (positive - isolated)
        if not self.rescale:
            return guided
        ratio = positive.std((1, 2), keepdim=True) / guided.std((1, 2), keepdim=True)
        return self.rescale * (guided * ratio) + (1 - self.rescale) * guided


class FilmGuidance(NamedTuple):
    """The texts and the scales of a request."""

    positive: TextEmbeddings
    negative: TextEmbeddings | None  # None where no guidance by the prompt is needed
    video: Scales
    audio: Scales
    audio_tokens: int
    audio_width: int  # the channels of these
    sigma: float = 1.0  # of the step

    @property
    def passes(self) -> list[Pass]:
        """The predictions that are needed, the positive one first."""
        passes = [Pass(self.positive)]
        if self.negative is not None:
            passes.append(Pass(self.negative))
        if self.video.stg or self.audio.stg:
            passes.append(Pass(self.positive, perturbed=True))
        if self.video.modality != 1 or self.audio.modality != 1:
            passes.append(Pass(self.positive, isolated=True))
        return passes

    def predict(self, model: FilmDenoiser, latents: Tensor, timestep: Tensor) -> Tensor:
        """Returns the guided velocity for latents `[B, T + A, C]`, of their shape, in float32."""
        passes = self.passes
        velocities = [velocity.float() for velocity in model(latents, timestep, passes)]
        if len(passes) == 1:
            return velocities[0]
        clean = [latents - velocity * self.sigma for velocity in velocities]
        kinds = [self._kind(each) for each in passes]
        guided = latents.clone()
        for scales, part in (
            (self.video, (slice(None), slice(None, -self.audio_tokens))),
            (self.audio, (slice(None), slice(-self.audio_tokens, None), slice(None, self.audio_width))),
        ):
            found = {kind: value[part] for kind, value in zip(kinds, clean, strict=True)}
            guided[part] = scales.apply(*(found.get(kind) for kind in _KINDS))  # type: ignore[arg-type]
        return (latents - guided) / self.sigma

    def _kind(self, each: Pass) -> str:
        if each.perturbed or each.isolated:
            return "perturbed" if each.perturbed else "isolated"
        return "positive" if each.text is self.positive else "negative"


_KINDS = ("positive", "negative", "perturbed", "isolated")  # as `Scales.apply` takes them


def scales_of(request: GenerationRequest, prefix: str) -> Scales:
    """Returns the scales of the film, or of its sound with the prefix `audio_`. At 0 and 1 guidance is off."""
    guidance, rescale, modality, stg = (
        getattr(request, f"{prefix}{name}")
        for name in ("guidance_scale", "guidance_rescale", "modality_scale", "stg_scale")
    )
    return Scales(guidance or 1.0, rescale, modality, stg)


def guided_texts(request: GenerationRequest) -> dict[str, str]:
    """Returns the texts that a film is made of, by what they are called."""
    texts = {"prompt": request.prompt}
    negative = request.negative_prompt or ""
    is_guided = any(scales_of(request, prefix).guidance != 1 for prefix in ("", "audio_"))
    if is_guided and negative.strip() != request.prompt.strip():
        texts["negative prompt"] = negative
    return texts
