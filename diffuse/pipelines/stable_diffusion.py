"""Stable Diffusion 1.x and 2.x: a prompt becomes a picture (Rombach et al., 2022)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse import weights
from diffuse.errors import CheckpointError, ConfigError
from diffuse.memory_profile import Memory
from diffuse.models.text_encoder import clip
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.models.unet import unet2d_condition
from diffuse.models.vae import autoencoder_kl
from diffuse.pipelines.denoise import Guidance, Sampler, denoise, initial_noise, require_finite
from diffuse.request import Generation, GenerationRequest, Step
from diffuse.schedulers import build
from diffuse.weights import Checkpoint


class StableDiffusion:
    """A checkpoint of this family, ready to make pictures. Weights are read when a component is first used.

    Raises:
        CheckpointError: a component's configuration is missing or asks for what is not implemented, or its weights
            are not those of that configuration.
    """

    components = ("text_encoder", "tokenizer", "unet", "vae")

    def __init__(self, checkpoint: Checkpoint, memory: Memory) -> None:
        self.checkpoint = checkpoint
        self.memory = memory
        self.tokenizer = CLIPTokenizer.from_folder(checkpoint.path("tokenizer"))
        self.text_config = self._config(clip.CLIPTextConfig, "text_encoder")
        self.unet_config = self._config(unet2d_condition.UNet2DConditionConfig, "unet")
        self.vae_config = self._config(autoencoder_kl.AutoencoderKLConfig, "vae")
        self._check_fit()
        self._add("text_encoder", clip.CLIPTextModel, self.text_config, clip.rename)
        self._add("unet", unet2d_condition.UNet2DConditionModel, self.unet_config, unet2d_condition.rename)
        self._add(
            "vae",
            autoencoder_kl.AutoencoderKL,
            self.vae_config,
            autoencoder_kl.rename,
            float32=self.vae_config.force_upcast,
        )

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

    def scheduler(self, options: Mapping[str, Any]) -> Sampler:
        """The sampler that `options` names, with the checkpoint's published settings where an option is null."""
        scheduler: Sampler = build.build(options, self.checkpoint.config("scheduler"))
        return scheduler

    @torch.inference_mode()
    def __call__(
        self,
        request: GenerationRequest,
        scheduler: Sampler,
        *,
        latents: Tensor | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Generation:
        """Makes the request's pictures.

        Args:
            latents: initial noise `[N, C, h, w]` of unit variance, one for each image; drawn from the seeds if None.
            on_step: told of each step as it ends.

        Raises:
            ConfigError: the latents' shape does not fit the request.
            RunError: a component gave NaN, or the device ran out of memory.
        """
        self.memory.start()
        clock = _Clock(self.memory)
        shape = self._latent_shape(request)
        if latents is not None and tuple(latents.shape) != (request.num_images, *shape):
            raise ConfigError(f"latents are {tuple(latents.shape)}; this request needs {(request.num_images, *shape)}")
        scheduler.set_timesteps(request.num_inference_steps)
        total = len(scheduler.timesteps)
        batches = _split(request.num_images, self.memory.batch_size)

        # 1. The prompts become text states.
        with clock.phase("encode_s"):
            guidance, warnings = self._encode(request)

        # 2. Noise becomes latents, a batch at a time.
        denoised, step_seconds = [], []
        for number, batch in enumerate(batches):
            generators = [torch.Generator("cpu").manual_seed(request.seeds[i]) for i in batch]
            noise = initial_noise(shape, generators) if latents is None else latents[batch.start : batch.stop].float()

            def after_step(index: int, timestep: float, seconds: float, before: int = number * total) -> None:
                step_seconds.append(seconds)
                self.memory.after_step(index)
                if on_step is not None:
                    on_step(Step(before + index, total * len(batches), timestep, seconds))

            with clock.phase("denoise_s"), self.memory.use("unet") as unet:
                result = denoise(
                    unet,
                    scheduler,
                    (noise * scheduler.init_noise_sigma).to(self.memory.device("unet")),
                    guidance,
                    generators,
                    dtype=self.memory.dtype("unet"),
                    after_step=after_step,
                )
            denoised.append(result)

        # 3. Latents become pixels. All at the end, so that components change places once, not once a batch.
        with clock.phase("decode_s"):
            images = [self._decode(result) for result in denoised]

        return Generation(np.concatenate(images), clock.timings(), step_seconds, self.memory.peaks(), warnings)

    def _encode(self, request: GenerationRequest) -> tuple[Guidance, list[str]]:
        """Text states of the prompt, and of the negative prompt where it matters; what was cut off."""
        guided = request.guidance_scale != 1 and request.negative_prompt != request.prompt
        texts = [request.prompt, request.negative_prompt] if guided else [request.prompt]
        tokens = self.tokenizer(texts)
        warnings = [
            f"the {name} is longer than {self.tokenizer.max_length} tokens; cut off: {cut!r}"
            for name, cut in zip(("prompt", "negative prompt"), tokens.cut, strict=False)
            if cut
        ]
        device, dtype = self.memory.device("unet"), self.memory.dtype("unet")
        with self.memory.use("text_encoder") as text_encoder:
            ids = tokens.ids.to(self.memory.device("text_encoder"))
            # One text at a time, so that a prompt's states do not depend on what it is encoded with.
            states = [text_encoder(row[None]).last_hidden_state.to(device, dtype) for row in ids]
        negative = states[1] if guided else None
        return Guidance(states[0], negative, request.guidance_scale, self.memory.batched_guidance), warnings

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

    def _latent_shape(self, request: GenerationRequest) -> tuple[int, int, int]:
        factor = self.vae_config.factor
        return self.unet_config.in_channels, request.height // factor, request.width // factor

    def _config(self, config: type[Any], component: str) -> Any:
        where = str(self.checkpoint.path(f"{component}/config.json"))
        return weights.architecture(config, self.checkpoint.config(component), where)

    def _add(
        self,
        name: str,
        model: type[torch.nn.Module],
        config: Any,
        rename: Callable[[str], str | None],
        float32: bool = False,
    ) -> None:
        # The headers show now what would otherwise end a run that is already recorded.
        weights.check(lambda: model(config), self.checkpoint, name, rename=rename)

        def load(device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
            return weights.load(lambda: model(config), self.checkpoint, name, device=device, dtype=dtype, rename=rename)

        self.memory.add(name, load, float32=float32)

    def _check_fit(self) -> None:
        unet, vae = self.unet_config, self.vae_config
        if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
            raise CheckpointError(
                f"{self.checkpoint.folder}: the unet takes {unet.in_channels} channels and gives {unet.out_channels}, "
                f"the vae's latents have {vae.latent_channels}; the folders are of different models"
            )
        widths = set(unet.per_level(unet.cross_attention_dim))
        if widths != {self.text_config.hidden_size}:
            raise CheckpointError(
                f"{self.checkpoint.folder}: the unet attends to text {sorted(widths)} wide, "
                f"the text encoder gives {self.text_config.hidden_size}; the folders are of different models"
            )
        if self.tokenizer.max_length > self.text_config.max_position_embeddings:
            raise CheckpointError(
                f"{self.checkpoint.folder}: the tokenizer makes {self.tokenizer.max_length} tokens, "
                f"the text encoder has {self.text_config.max_position_embeddings} positions; the folders are of "
                "different models"
            )


class _Clock:
    """Seconds of each phase, without those in which weights were read, which count as loading."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.start = time.perf_counter()
        self.phases = {"encode_s": 0.0, "denoise_s": 0.0, "decode_s": 0.0}

    @contextmanager
    def phase(self, name: str) -> Any:
        start, loaded = time.perf_counter(), self.memory.load_seconds
        yield
        self.phases[name] += time.perf_counter() - start - (self.memory.load_seconds - loaded)

    def timings(self) -> dict[str, float]:
        total = time.perf_counter() - self.start
        return {"load_s": self.memory.load_seconds, **self.phases, "total_s": total}


def _split(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
