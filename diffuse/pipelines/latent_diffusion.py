"""What every pipeline of an image autoencoder and a U-Net between its latents shares (Rombach et al., 2022).

A family of checkpoints adds its text encoders and says how a prompt becomes the denoiser's conditioning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.weights import check_weights, load_weights
from diffuse.device.memory import Memory
from diffuse.errors import CheckpointError, ConfigError
from diffuse.models.text_encoder import clip
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl
from diffuse.sampling.batches import Clock, Steps, split
from diffuse.sampling.denoise import Sampler, denoise, require_finite
from diffuse.sampling.encoded_prompts import EncodedTexts
from diffuse.sampling.guidance import Conditioning, Guidance, embedded_scale
from diffuse.sampling.results import Made, Step
from diffuse.sampling.start import Begun, Draw, FromNoise, FromPicture, Generators, Inpaint, InpaintingModel, Start
from diffuse.schedulers.build import build_sampler
from diffuse.schedulers.sampler import State
from diffuse.schema import GenerationRequest


class Encoded(NamedTuple):
    """A request's prompts as the denoiser takes them, in its precision; `cut` says what did not fit, a line each."""

    positive: Conditioning
    negative: Conditioning | None  # None where guidance would change nothing
    cut: list[str]


class LatentPipeline:
    """A checkpoint, ready to make pictures. Weights are read when a component is first used.

    Raises:
        CheckpointError: a component's configuration is missing or asks for what is not implemented, or its weights
            are not those of that configuration.
    """

    components: ClassVar[tuple[str, ...]]  # folders of the checkpoint
    request_fields: ClassVar[frozenset[str]] = frozenset(  # that not every family knows
        {
            "long_prompt",
            "prompt_syntax",
            "timesteps",
            "guidance_rescale",
            "input_image",
            "mask_image",
            "strength",
            "resize",
            "keep_unmasked",
        }
    )

    def __init__(self, checkpoint: Checkpoint, memory: Memory) -> None:
        self.checkpoint = checkpoint
        self.memory = memory
        self.encoded = EncodedTexts(memory)
        self.unet_config = self.config(unet2d_condition.UNet2DConditionConfig, "unet")
        self.vae_config = self.config(autoencoder_kl.AutoencoderKLConfig, "vae")
        unet, vae = self.unet_config, self.vae_config
        beside = unet.in_channels - vae.latent_channels
        self.inpaints = beside == 1 + vae.latent_channels  # the mask and the masked picture
        if unet.out_channels != vae.latent_channels or not (self.inpaints or beside == 0):
            raise self.misfit(
                f"the unet takes {unet.in_channels} channels and gives {unet.out_channels}, "
                f"the vae's latents have {vae.latent_channels}; these should be equal, "
                f"or for inpainting {1 + 2 * vae.latent_channels} be taken"
            )

    def add_denoiser(self) -> None:
        """Declares the U-Net and the autoencoder, once it is known that the checkpoint's parts fit together."""
        self.add("unet", unet2d_condition.UNet2DConditionModel, self.unet_config, unet2d_condition.rename)
        vae = self.vae_config
        self.add("vae", autoencoder_kl.AutoencoderKL, vae, autoencoder_kl.rename, float32=vae.force_upcast)

    def encode(self, request: GenerationRequest, guided: bool) -> Encoded:
        """The prompts as the denoiser takes them; the negative ones where `guided`, and where they are others."""
        raise NotImplementedError

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """The request with the family's own fields filled where they were left open."""
        return request

    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels that the denoiser was trained at."""
        size = self.unet_config.sample_size
        rows, columns = size if isinstance(size, tuple) else (size, size)
        return columns * self.vae_config.factor, rows * self.vae_config.factor

    def check(self, request: GenerationRequest) -> None:
        """Refuses what only the checkpoint's own configuration shows to be wrong, before a weight is read."""
        factor = self.vae_config.factor
        for name, value in (("width", request.width), ("height", request.height)):
            if value % factor:
                nearest = max(factor, round(value / factor) * factor)
                raise ConfigError(f"{name}={value}: this checkpoint needs a multiple of {factor}; try {nearest}")
        if self.inpaints and not request.mask_image:
            raise ConfigError(
                f"model.source={self.checkpoint.source}: paints into pictures; add input_image=FILE and mask_image=FILE"
            )

    def scheduler(self, options: Mapping[str, Any]) -> Sampler:
        """The sampler that `options` names, with the checkpoint's published settings where an option is null."""
        scheduler: Sampler = build_sampler(options, self.checkpoint.config("scheduler"))
        return scheduler

    def plan(self, request: GenerationRequest, options: Mapping[str, Any]) -> Sampler:
        """The sampler that `options` names, with the request's steps, so that what it cannot do is refused."""
        scheduler = self.scheduler(options)
        scheduler.set_timesteps(request.num_inference_steps, request.timesteps)
        return scheduler

    @torch.inference_mode()
    def __call__(
        self,
        request: GenerationRequest,
        scheduler: Sampler,
        *,
        picture: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        latents: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Made:
        """Makes the request's pictures.

        Args:
            picture: what to start from, uint8 `[H, W, 3]` of the request's size.
            mask: what of it is to be painted anew, bool `[H, W]`.
            latents: initial noise `[N, C, h, w]` of unit variance, one for each image; drawn from the seeds if None.
            seeds: one for each image, where they are not the request's own; so requests that differ in the seed alone
                can be made as one.
            on_step: told of each step as it ends.

        Raises:
            ConfigError: the latents' shape does not fit the request.
            RunError: a component gave NaN, or the device ran out of memory.
        """
        self.memory.start()
        clock = Clock(self.memory)
        shape = self.latent_shape(request, latents)
        scheduler.set_timesteps(request.num_inference_steps, request.timesteps, skip=request.skipped_steps)
        total = len(scheduler.timesteps)
        seeds = request.seeds if seeds is None else seeds
        batches = split(len(seeds), self.memory.together(request.width, request.height))

        # 1. The prompts become the denoiser's conditioning, and a picture the distribution of its latents.
        with clock.phase("encode_s"):
            guidance, warnings = self.guidance(request)
            start = self._start(request, shape, picture, mask)

        # 2. Noise becomes latents, a batch at a time.
        steps = Steps(total * len(batches), on_step)
        denoised = []
        for batch in batches:
            generators = [torch.Generator("cpu").manual_seed(seeds[i]) for i in batch]
            noise = None if latents is None else latents[batch.start : batch.stop].float()
            begun = start.begin(scheduler, generators, noise)
            with clock.phase("denoise_s"):
                denoised.append(self.denoise_batch(begun, guidance, generators, steps))

        # 3. Latents become pixels. All at the end, so that components change places once, not once a batch.
        with clock.phase("decode_s"):
            images = self.decode(denoised)
            if request.keep_unmasked and mask is not None and picture is not None:
                images = np.where(mask[..., None], images, picture)

        return Made(images, clock.timings(), steps.seconds, self.memory.peaks(), joined(denoised), warnings)

    def denoise_batch(self, begun: Begun, guidance: Guidance, generators: Generators, steps: Steps) -> Tensor:
        """A batch, from what it begins with to where its walk ends, `[B, C, h, w]`."""

        def after_step(index: int, timestep: float, seconds: float, state: State) -> None:
            self.memory.after_step(index)
            steps.tell(timestep, seconds, state.sample, lambda: self._decode(state.denoised()))

        with self.memory.use("unet") as unet:
            return denoise(
                begun.seen(unet),
                begun.walk,
                begun.latents.to(self.memory.device("unet")),
                guidance,
                generators,
                dtype=self.memory.dtype("unet"),
                after_step=after_step,
            )

    def guidance(self, request: GenerationRequest) -> tuple[Guidance, list[str]]:
        """What the denoiser is told of the request; what of its prompts was cut off."""
        width = self.unet_config.time_cond_proj_dim  # of the guidance scale, which a distilled denoiser is told instead
        # At 0 the formula would leave the prompt out; published settings write 0 for "no guidance".
        encoded = self.encode(request, guided=request.guidance_scale not in (0, 1) and width is None)
        dtype = self.memory.dtype("unet")
        told = {} if width is None else {"timestep_cond": embedded_scale(request.guidance_scale, width).to(dtype)}
        guidance = Guidance(
            self._on_device({**encoded.positive, **told}),
            None if encoded.negative is None else self._on_device(encoded.negative),
            request.guidance_scale,
            self.memory.batched_guidance,
            request.guidance_rescale,
        )
        return guidance, encoded.cut

    def _on_device(self, conditioning: Conditioning) -> Conditioning:
        return {name: value.to(self.memory.device("unet")) for name, value in conditioning.items()}

    def _start(
        self,
        request: GenerationRequest,
        shape: Sequence[int],
        picture: np.ndarray | None,
        mask: np.ndarray | None,
    ) -> Start:
        """What the request's pictures start from."""
        pure = request.strength == 1
        if picture is None:
            return FromNoise(shape)
        pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255 * 2 - 1  # [1, 3, H, W]
        if mask is None:
            return FromPicture(self._drawn(pixels), pure)
        factor = self.vae_config.factor
        anew = torch.tensor(mask)[None, None].float()  # [1, 1, H, W]
        # A latent is painted anew where the first of its pixels is.
        anew_latents = anew[..., ::factor, ::factor].to(self.memory.device("unet"))
        if not self.inpaints:
            return Inpaint(self._drawn(pixels), anew_latents, pure)
        latents = FromNoise(shape) if pure else FromPicture(self._drawn(pixels), pure)
        return InpaintingModel(latents, self._drawn(pixels * (1 - anew)), anew_latents)

    def _drawn(self, pixels: Tensor) -> Draw:
        """Pixels `[1, 3, H, W]` in -1..1 -> their latents, to be drawn from the encoder's distribution."""
        config, dtype = self.vae_config, self.memory.dtype("vae")
        with self.memory.use("vae") as vae:
            encoded = vae.encode(pixels.to(self.memory.device("vae"), dtype))
        require_finite(encoded.mean, "vae", dtype)

        def draw(generators: Generators) -> Tensor:
            z = encoded.sample(generators).to(self.memory.device("unet")).float()
            return (z - (config.shift_factor or 0.0)) * config.scaling_factor

        return draw

    def decode(self, batches: Sequence[Tensor]) -> np.ndarray:
        """Denoised latents `[B, C, h, w]` of every batch -> uint8 pixels `[N, H, W, 3]`."""
        return np.concatenate([self._decode(latents) for latents in batches])

    def _decode(self, latents: Tensor) -> np.ndarray:
        """Denoised latents `[B, C, h, w]` -> uint8 pixels `[B, H, W, 3]`."""
        config, dtype = self.vae_config, self.memory.dtype("vae")
        z = latents / config.scaling_factor + (config.shift_factor or 0.0)
        with self.memory.use("vae") as vae:
            z = z.to(self.memory.device("vae"), dtype)
            pixels = vae.decode_tiled(z) if self.memory.tiled_decode else vae.decode(z)
        require_finite(pixels, "vae", dtype)
        unit = (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # [B, H, W, 3]
        return (unit.numpy() * 255).round().astype(np.uint8)

    def latent_shape(self, request: GenerationRequest, given: Tensor | None = None) -> tuple[int, int, int]:
        """The latents of one picture, `[C, h, w]`.

        Raises:
            ConfigError: `given`, the request's initial noise, is not of that shape.
        """
        factor = self.vae_config.factor
        shape = self.vae_config.latent_channels, request.height // factor, request.width // factor
        if given is not None and tuple(given.shape) != (request.num_images, *shape):
            raise ConfigError(f"latents are {tuple(given.shape)}; this request needs {(request.num_images, *shape)}")
        return shape

    def config(self, config: type[Any], component: str) -> Any:
        """The architecture that the checkpoint declares for `component`, as an instance of `config`."""
        part = self.checkpoint.part(component)
        where = part.display_name(component, "config.json")
        return read_architecture(config, part.config(component), where)

    def add(
        self,
        name: str,
        model: type[torch.nn.Module],
        config: Any,
        rename: Callable[[str], str | None],
        float32: bool = False,
    ) -> None:
        """Declares a component, whose weights are read when it is first used. `float32`: never in half precision."""
        part = self.checkpoint.part(name)
        # The headers show now what would otherwise end a run that is already recorded.
        check_weights(lambda: model(config), part, name, rename=rename)

        def load(device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
            return load_weights(lambda: model(config), part, name, device=device, dtype=dtype, rename=rename)

        self.memory.add(name, load, float32=float32)

    def check_text(self, tokenizer: CLIPTokenizer, config: clip.CLIPTextConfig) -> None:
        """Refuses a tokenizer whose texts are longer than its encoder takes, or hold words that it does not know."""
        if tokenizer.max_length > config.max_position_embeddings:
            raise self.misfit(
                f"the tokenizer makes {tokenizer.max_length} tokens, the text encoder has "
                f"{config.max_position_embeddings} positions"
            )

        words = tokenizer.tokenizer.get_vocab_size()
        if words > config.vocab_size:
            raise self.misfit(f"the tokenizer has {words} words, the text encoder knows {config.vocab_size}")

    def check_text_width(self, width: int) -> None:
        """Refuses a U-Net that attends to text of another width."""
        unet = self.unet_config
        widths = set(unet.per_level(unet.cross_attention_dim))
        if widths != {width}:
            raise self.misfit(f"the unet attends to text {sorted(widths)} wide, the text encoder gives {width}")

    def misfit(self, what: str) -> CheckpointError:
        """The error for components that do not belong together."""
        settings = " or ".join(f"{part.setting}.source" for part in self.checkpoint.parts.values())
        way_out = f"choose another {settings}" if settings else "the folders are of different models"
        return CheckpointError(f"{self.checkpoint.source}: {what}; {way_out}")


def joined(batches: Sequence[Tensor]) -> Tensor:
    """The latents `[B, C, h, w]` of every batch as one `[N, C, h, w]`, on the CPU."""
    return torch.cat([latents.float().cpu() for latents in batches])
