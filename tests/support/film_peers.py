"""Tiny random checkpoints of LTX-2 as diffusers saves them, and the films that its pipelines make of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2 import (
    LTX2ConditionPipeline,
    LTX2ImageToVideoPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2LatentUpsamplerModel,
    LTX2Pipeline,
    LTX2TextConnectors,
)
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from gemma_peers import LAYERS, WIDTH, randomise, tokenizer_peer, whole_peer
from ltx2_codec_peers import LATENTS, audio_peer, video_peer, vocoder_peer
from ltx2_peers import AUDIO, HEADS, VIDEO, peer_transformer
from torch import Tensor

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.pipelines import ltx2, ltx2_two_stages
from diffuse.run.generation import Generation
from diffuse.sampling.results import PipelineOutput
from diffuse.schema import (
    Determinism,
    Device,
    Dtype,
    GenerationRequest,
    GuidanceMode,
    HardwareConfig,
    MemoryProfileConfig,
)

TOKENS = 16  # of a text; a model has 1024
FLOW = {"_target_": "diffuse.schedulers.flow_match_euler.FlowMatchEuler", "name": "flow_match_euler"}
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
REQUEST = GenerationRequest(
    prompt="the robot",
    negative_prompt="ring",
    seed=3,
    num_images=1,
    width=96,
    height=64,
    num_frames=9,
    fps=24.0,
    num_inference_steps=2,
    guidance_scale=3.0,
    audio_guidance_scale=7.0,
)
_NAMES = {  # of a request's fields in diffusers' call
    "width": "width",
    "height": "height",
    "num_frames": "num_frames",
    "fps": "frame_rate",
    "num_inference_steps": "num_inference_steps",
    "sigmas": "sigmas",
    "stg_blocks": "spatio_temporal_guidance_blocks",
}
_SCALES = ("guidance_scale", "guidance_rescale", "modality_scale", "stg_scale")
_CONNECTORS: dict[str, dict[str, Any]] = {
    "2.0": {
        f"{stream}_connector_{name}": value
        for stream in ("video", "audio")
        for name, value in {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2}.items()
    },
    "2.3": {
        "video_connector_num_attention_heads": HEADS,
        "video_connector_attention_head_dim": VIDEO // HEADS,
        "audio_connector_num_attention_heads": HEADS,
        "audio_connector_attention_head_dim": AUDIO // HEADS,
        "video_gated_attn": True,
        "audio_gated_attn": True,
        "per_modality_projections": True,
        "video_hidden_dim": VIDEO,
        "audio_hidden_dim": AUDIO,
        "proj_bias": True,
    },
}


def edited(folder: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint, one of whose configurations says something else."""
    shutil.copytree(folder, target)
    path = target / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


class ShortTexts(ltx2.LTX2):
    """The pipeline, with texts that take no time."""

    text_tokens = TOKENS


class ShortTextsDistilled(ltx2.LTX2Distilled):
    text_tokens = TOKENS


class ShortTextsTwoStages(ltx2_two_stages.LTX2TwoStages):
    text_tokens = TOKENS


class Film(NamedTuple):
    """A film as diffusers makes it: the autoencoders' latents, frames uint8 `[1, F, H, W, 3]`, sound `[1, 2, S]`."""

    video: Tensor
    audio: Tensor
    frames: np.ndarray
    sound: np.ndarray


@dataclass
class TinyFilms:
    """A checkpoint in a folder, and diffusers' pipelines with the same weights."""

    version: str
    folder: Path
    parts: dict[str, Any]
    upsampler: Any
    tokens: int = TOKENS
    _pipelines: dict[Any, ltx2.LTX2] = field(default_factory=dict)
    _texts: dict[str, Any] = field(default_factory=dict)

    def ours(self, kind: type[ltx2.LTX2] | None = None) -> ltx2.LTX2:
        """Our pipeline of the folder, whose weights are read once."""
        kind = kind or ShortTexts
        if kind not in self._pipelines:
            self._pipelines[kind] = pipeline(self.folder, kind)
        return self._pipelines[kind]

    def scheduler(self, shifts: bool) -> Any:
        return FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=shifts,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1 if shifts else None,
        )

    def film(self, request: GenerationRequest, image: np.ndarray | None = None, **more: Any) -> Film:
        """The film of a request; its sigmas, where it has some, are visited as they are."""
        return self.decoded(*self.latents(request, image, **more))

    def latents(
        self, request: GenerationRequest, image: np.ndarray | None = None, generator: Any = None, **more: Any
    ) -> tuple[Tensor, Tensor]:
        kind = LTX2Pipeline if image is None else LTX2ImageToVideoPipeline
        kind = LTX2ConditionPipeline if "conditions" in more else kind
        pipeline = kind(**{**self.parts, "scheduler": self.scheduler(request.sigmas is None)})
        pipeline.set_progress_bar_config(disable=True)
        call = {theirs: getattr(request, ours) for ours, theirs in _NAMES.items()}
        for name in _SCALES:
            value = getattr(request, name)
            value = {"modality_scale": 1.0, "stg_scale": 0.0}[name] if value is None else value
            other = getattr(request, f"audio_{name}")
            call |= {name: value, f"audio_{name}": value if other is None else other}
        if image is not None:
            call |= {"image": torch.tensor(image).permute(2, 0, 1)[None].float() / 255, "image_crf": 0}
        guided = max(call["guidance_scale"], call["audio_guidance_scale"]) > 1
        texts = {"": request.prompt} | ({"negative_": request.negative_prompt or ""} if guided else {})
        for prefix, text in texts.items():
            names = f"{prefix}prompt_embeds", f"{prefix}prompt_attention_mask"
            call |= dict(zip(names, self._text(pipeline, text), strict=True))
        call["sigmas"] = None if request.sigmas is None else list(request.sigmas)
        video, audio = pipeline(
            **(call | more),
            use_cross_timestep=self.version != "2.0",
            generator=generator or torch.Generator("cpu").manual_seed(request.seed),
            max_sequence_length=self.tokens,
            output_type="latent",
            return_dict=False,
        )
        return video, audio

    def enlarged(self, video: Tensor) -> Tensor:
        pipeline = LTX2LatentUpsamplePipeline(vae=self.parts["vae"], latent_upsampler=self.upsampler)
        return pipeline(latents=video, output_type="latent", return_dict=False)[0]

    @torch.inference_mode()
    def decoded(self, video: Tensor, audio: Tensor) -> Film:
        pixels = self.parts["vae"].decode(video, return_dict=False)[0]
        unit = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)
        sound = self.parts["vocoder"](self.parts["audio_vae"].decode(audio, return_dict=False)[0])
        return Film(video, audio, (unit.numpy() * 255).round().astype(np.uint8), sound.numpy())

    def _text(self, pipeline: Any, text: str) -> Any:
        """What their text encoder makes of a text, once."""
        if text not in self._texts:
            self._texts[text] = pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=self.tokens
            )[:2]
        return self._texts[text]


def condition(frames: np.ndarray, index: int = 0, strength: float = 1.0) -> LTX2VideoCondition:
    """Frames `[F, H, W, 3]` or one `[H, W, 3]` as diffusers takes them; `index` is of the latents."""
    return LTX2VideoCondition(frames if frames.ndim == 4 else frames[None], index, strength, crf=0)


_built: dict[str, TinyFilms] = {}


def tiny(version: str, folders: pytest.TempPathFactory) -> TinyFilms:
    """The checkpoint of a version, which all tests of a process share; `edited` makes a copy."""
    if version not in _built:
        _built[version] = build(folders.mktemp("films"), version)
    return _built[version]


def build(folder: Path, version: str) -> TinyFilms:
    """Writes the checkpoint of a version into a folder."""
    tokenizer = tokenizer_peer()
    caption = {"caption_channels": WIDTH} if version == "2.0" else {}
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=LAYERS + 1,
        video_connector_num_layers=1,
        audio_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_learnable_registers=8,
        connector_rope_base_seq_len=64,
        rope_type="split",
        **_CONNECTORS[version],
    )
    # The sound's latents of 2.3 have fewer channels here than the film's.
    codec = {} if version == "2.0" else {"base_channels": 4, "latent_channels": 1}
    channels = dict.fromkeys(("in_channels", "out_channels"), LATENTS)
    channels |= dict.fromkeys(("audio_in_channels", "audio_out_channels"), codec.get("base_channels", LATENTS))
    parts = {
        # With it diffusers perturbs attention; of 2.0 it is not published, and stands in no file here.
        "transformer": peer_transformer(version, **channels, **caption, perturbed_attn=True),
        "vae": video_peer(version),
        "audio_vae": audio_peer(**codec),
        "vocoder": vocoder_peer(version),
        "text_encoder": whole_peer(len(tokenizer) + 3),
        "tokenizer": tokenizer,
        "connectors": randomise(connectors, seed=4),
        "processor": None,
        "prompt_enhancer": None,
        "duration_head": None,
    }
    upsampler = LTX2LatentUpsamplerModel(LATENTS, mid_channels=32, num_blocks_per_stage=1)
    films = TinyFilms(version, folder, parts, randomise(upsampler))
    LTX2Pipeline(**parts, scheduler=films.scheduler(True)).save_pretrained(folder)
    films.upsampler.save_pretrained(folder / "latent_upsampler")
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"perturbed_attn": version != "2.0"}))
    return films


def pipeline(
    folder: Path,
    kind: type[ltx2.LTX2] = ShortTexts,
    profile: MemoryProfileConfig | None = None,
    *,
    strict: bool = False,
    dtype: Dtype = Dtype.auto,
    sequential: bool = False,
) -> ltx2.LTX2:
    deterministic = Determinism.strict if strict else Determinism.relaxed
    config = HardwareConfig(name="cpu", device=Device.cpu, deterministic=deterministic, dtype=dtype)
    guidance = GuidanceMode.sequential if sequential else GuidanceMode.batched
    profile = profile or MemoryProfileConfig(name="full_gpu", on_device=["*"], batch_size=4, guidance=guidance)
    return kind(CheckpointFolder.open(folder), Memory(profile, hardware.detect(config)))


def make(pipe: ltx2.LTX2, request: GenerationRequest = REQUEST, **options: Any) -> PipelineOutput:
    """What our pipeline makes of a request, as a run does it."""
    request = pipe.complete(request)
    pipe.check(request)
    return pipe(request, pipe.plan(request, FLOW), **options)


def picture(width: int = 96, height: int = 64, seed: int = 0) -> np.ndarray:
    """A picture of noise, uint8 `[H, W, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(ours: PipelineOutput | Generation, theirs: Film) -> None:
    """Latents within 1e-4, frames within a level, sound within 1e-3; and a film of something."""
    assert theirs.frames.std() > 20 and theirs.sound.std() > 0.01
    torch.testing.assert_close(ours.latents["video"], theirs.video, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.latents["audio"], theirs.audio, rtol=1e-4, atol=1e-4)
    assert ours.frames.shape == theirs.frames.shape
    assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 1
    assert ours.sound is not None and ours.sound.shape == theirs.sound.shape
    assert np.abs(ours.sound - theirs.sound).max() <= 1e-3
