"""Trains the tiny video checkpoint, stage by stage; each goes on from where it stopped:

    python -m diffuse.tiny.train_video vae         --work FOLDER --minutes 60
    python -m diffuse.tiny.train_video audio_vae   --work FOLDER --minutes 5
    python -m diffuse.tiny.train_video vocoder     --work FOLDER --minutes 15
    python -m diffuse.tiny.train_video transformer --work FOLDER --minutes 180   (needs both autoencoders)
    python -m diffuse.tiny.train_video export      --work FOLDER                  (writes diffuse/tiny/video_checkpoint)

`resume` makes a folder from the checkpoint in the package, so that its training can go on.

The denoiser learns the velocity from data to noise (Lipman et al., "Flow Matching for Generative Modeling", 2023; Liu
et al., "Flow Straight and Fast", 2023) of film and sound together, with its connectors and its text encoder.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from diffuse.models.text_encoder.gemma3 import Gemma3TextConfig, Gemma3TextModel
from diffuse.models.text_encoder.gemma_tokenizer import GemmaTokenizer
from diffuse.models.text_encoder.ltx2_connectors import LTX2TextConnectors, LTX2TextConnectorsConfig
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig
from diffuse.models.transformer.transformer_ltx2 import LTX2VideoTransformer3DModel
from diffuse.models.vae.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio, AutoencoderKLLTX2AudioConfig
from diffuse.models.vae.autoencoder_kl_ltx2_video import AutoencoderKLLTX2Video
from diffuse.models.vae.ltx2_video_blocks import ResnetBlock3D
from diffuse.models.vae.ltx2_video_config import AutoencoderKLLTX2VideoConfig
from diffuse.models.vocoder.ltx2_vocoder import LTX2Vocoder, LTX2VocoderConfig
from diffuse.tiny import data, video_data, video_layout, video_sound
from diffuse.tiny.layout import build_config
from diffuse.tiny.training import averaged, train
from diffuse.tiny.video_encoder import set_video_autoencoder_weights

CHECKPOINT = data.HERE / "video_checkpoint"
LATENT_FRAMES = (video_data.FRAMES - 1) // 8 + 1
SOUND_LATENTS = round(video_sound.SECONDS * 25)  # 25 a second
MEL_FRAMES = 4 * SOUND_LATENTS - 3
_SHADES = 2  # latents kept of each film
_BATCH, _FILM_BATCH = 48, 8  # of latents, and of films
_SAMPLE = 512  # films whose blocks give the weights of the video encoder
_NOISE = 0.2  # at most, of latents' deviation: a denoiser leaves some
_CLEAN_FIRST = 0.15  # of the films have their first frame given, as image-to-video has it


def build(component: str) -> Any:
    """Builds a component with PyTorch's initial weights."""
    config = video_layout.CONFIGS[component]
    if component == "text_encoder":
        config = {**config, "vocab_size": tokenizer().vocab_size}
    kinds: dict[str, tuple[Any, Callable[[Any], nn.Module]]] = {
        "text_encoder": (Gemma3TextConfig, Gemma3TextModel),
        "connectors": (LTX2TextConnectorsConfig, LTX2TextConnectors),
        "transformer": (LTX2VideoTransformer3DConfig, LTX2VideoTransformer3DModel),
        "vae": (AutoencoderKLLTX2VideoConfig, AutoencoderKLLTX2Video),
        "audio_vae": (AutoencoderKLLTX2AudioConfig, AutoencoderKLLTX2Audio),
        "vocoder": (LTX2VocoderConfig, LTX2Vocoder),
    }
    kind, make = kinds[component]
    return make(build_config(kind, config))


def tokenizer() -> GemmaTokenizer:
    """Builds the tokenizer, to which every word of a caption is one token."""
    rng = random.Random(0)
    captions = [video_data.caption(triple, rng) for triple in video_data.triples() for _ in range(2)]
    words = {word for caption in captions for word in caption.replace(",", " ").split()}
    return GemmaTokenizer(video_layout.make_tokenizer([*words, ","]), start=[2], end=[], pad=0)


def train_vae(work: Path, minutes: float, rate: float, bfloat16: bool, font: Path) -> None:
    """Computes the encoder, and a decoder to begin with; then trains the decoder, on latents with a little noise.

    Of the decoder the residual branches are trained, which add to the best linear guess what it leaves out: it stands
    on a large constant, which steps of an optimizer would disturb.
    """
    glyphs, palette = video_data.glyphs(font), video_data.palette()
    file = work / "vae.pt"
    if not file.exists():
        vae = build("vae")
        set_video_autoencoder_weights(vae, _films(glyphs, palette, _SAMPLE))
        torch.save({"mean": vae.state_dict()}, file)
    vae = _video_autoencoder(work)
    deviation = vae.latents_std[:, None, None, None]
    branches = _branches(vae).requires_grad_(True)

    def compute_loss() -> Tensor:
        x = _films(glyphs, palette, _FILM_BATCH)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            z = vae.encode(x).mean
        z = z + torch.randn_like(z) * deviation * _NOISE * torch.rand(len(z), 1, 1, 1, 1)
        error = vae.decoder(z).float() - x
        edges = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
        return error.abs().mean() + error.square().mean() + 0.25 * edges

    train("decoder", branches, compute_loss, work, minutes=minutes, rate=rate, average=0.998, bfloat16=bfloat16)
    vae = _video_autoencoder(work)
    x = _films(glyphs, palette, 4 * _FILM_BATCH)
    with torch.no_grad():
        error = (vae.decode(vae.encode(x).mode()).clamp(-1, 1) - x).square().mean(dim=(1, 2, 3, 4)) / 4
    print(f"vae: {float((-10 * error.log10()).mean()):.2f} dB", flush=True)


def _video_autoencoder(work: Path) -> Any:
    """Returns the video autoencoder, with its decoder as far as it is trained."""
    vae = averaged(build("vae"), work / "vae.pt")
    if (work / "decoder.pt").exists():
        averaged(_branches(vae), work / "decoder.pt")
    return vae


def _branches(vae: Any) -> nn.ModuleList:
    return nn.ModuleList(block for block in vae.decoder.modules() if isinstance(block, ResnetBlock3D))


def train_audio_vae(work: Path, minutes: float, rate: float) -> None:
    """Trains the autoencoder of spectrograms, on sounds that are louder or softer than they should be."""
    vae = build("audio_vae")
    for layer in (layer for layer in vae.modules() if isinstance(layer, nn.Conv2d)):
        nn.init.orthogonal_(layer.weight)

    def compute_loss() -> Tensor:
        mel = _spectrograms(torch.randint(len(video_data.MOTIONS), (8,)), varied=True)
        mean = vae.encoder(mel).chunk(2, dim=1)[0]
        z = mean + torch.randn_like(mean) * mean.detach().std() * _NOISE * torch.rand(len(mean), 1, 1, 1)
        return (vae.decoder(z) - mel).abs().mean() + 1e-3 * mean.square().mean()

    train("audio_vae", vae, compute_loss, work, minutes=minutes, rate=rate, average=0.998)


def train_vocoder(work: Path, minutes: float, rate: float) -> None:
    """Trains the vocoder on waves, which multiples of 100 Hz determine."""
    vocoder = build("vocoder")
    count = len(video_data.MOTIONS)
    waves = torch.stack([video_sound.sound(i, video_layout.VOCODER["output_sampling_rate"]) for i in range(count)])
    waves = waves[..., : MEL_FRAMES * 240]

    def compute_loss() -> Tensor:
        motions = torch.randint(count, (2,))
        loudness = torch.rand(2, 1, 1) * 0.6 + 0.5
        mel = _spectrograms(motions) + loudness[..., None].log()
        mel = mel + torch.randn_like(mel) * 0.1 * torch.rand(2, 1, 1, 1)
        output, target = vocoder(mel), waves[motions] * loudness
        return (output - target).abs().mean() * 3 + _spectral_distance(output, target)

    train("vocoder", vocoder, compute_loss, work, minutes=minutes, rate=rate)


def train_transformer(
    work: Path, minutes: float, rate: float, bfloat16: bool, font: Path, compiled: bool = False
) -> None:
    """Trains denoiser, connectors and text encoder together, on the latents of all films that are not held out."""
    modules = nn.ModuleDict({name: build(name) for name in ("text_encoder", "connectors", "transformer")})
    _initialise(modules)
    latents, sounds, triples = _latents(work, font)
    tokens, rng, batch = tokenizer(), random.Random(time.time_ns()), _BATCH
    transformer: Any = modules["transformer"]
    side = video_data.SIDE // 16
    places = transformer.coordinates(LATENT_FRAMES, side, side, fps=video_data.FPS, audio_frames=SOUND_LATENTS)
    rotations = transformer.rotations(*places)
    first = torch.zeros(latents.shape[1], dtype=torch.bool)
    first[: side * side] = True
    predict = torch.compile(transformer) if compiled else transformer

    def compute_loss() -> Tensor:
        chosen = torch.randint(len(latents), (batch,))
        captions = [video_data.caption((i, j, k), rng) for i, j, k in triples[chosen].tolist()]
        text = _encode(modules, tokens, captions)
        x, y = latents[chosen], sounds[triples[chosen][:, 1]]
        # One from each of `batch` equal spans: less noise in the gradient than independent draws. Great noise levels
        # come more often: the content of the film is decided there.
        sigma = ((torch.arange(batch) + torch.rand(batch)) / batch) ** 0.6
        given = (torch.rand(batch) < _CLEAN_FIRST)[:, None] & first  # [B, T]
        level = sigma[:, None].expand_as(given).masked_fill(given, 0.0)
        noise, noise_y = torch.randn_like(x), torch.randn_like(y)
        velocity = predict(
            torch.lerp(x, noise, level[..., None]),
            torch.lerp(y, noise_y, sigma[:, None, None]),
            text.video,
            text.audio,
            level * 1000,
            rotations,
            sigma=sigma * 1000,
        )
        error = (velocity.video.float() - (noise - x)).square().mean(dim=2)
        video = error.masked_fill(given, 0.0).sum() / (~given).sum()
        return video + 0.3 * F.mse_loss(velocity.audio.float(), noise_y - y)

    train("transformer", modules, compute_loss, work, minutes=minutes, rate=rate, average=0.998, bfloat16=bfloat16)


def resume(folder: Path, work: Path) -> None:
    """Writes a work folder from the checkpoint in `folder`: its weights, without optimizer state or training time."""
    weights = {}
    for name in video_layout.CONFIGS:
        stored = load_file(folder / video_layout.weights_file(name))
        weights[name] = {key.removeprefix("model."): value.float() for key, value in stored.items()}
    together = ("text_encoder", "connectors", "transformer")
    stages = {name: weights[name] for name in ("vae", "audio_vae", "vocoder")}
    stages["transformer"] = {f"{name}.{key}": value for name in together for key, value in weights[name].items()}
    for name, state in stages.items():
        torch.save({"modules": state, "mean": state, "step": 0, "seconds": 0.0}, work / f"{name}.pt")


def export(work: Path, folder: Path) -> None:
    """Writes the averaged weights in half precision, with their configuration, in the diffusers layout."""
    modules = nn.ModuleDict({name: build(name) for name in ("text_encoder", "connectors", "transformer")})
    averaged(modules, work / "transformer.pt")
    vae, audio_vae = _autoencoders(work)
    modules.update({"vae": vae, "audio_vae": audio_vae, "vocoder": averaged(build("vocoder"), work / "vocoder.pt")})
    video_layout.write_tiny_video_checkpoint(folder, tokenizer().tokenizer, modules)


def _films(glyphs: Tensor, palette: Tensor, batch: int) -> Tensor:
    """Returns random films `[B, 3, F, H, W]` in -1..1, some of them with an object that is a little out of place."""
    glyph = glyphs[torch.randint(len(glyphs), (batch,))]
    if random.random() < 0.3:
        glyph = glyph.roll((random.randint(-4, 4), random.randint(-4, 4)), (2, 3))
    motions = torch.randint(len(video_data.MOTIONS), (batch,))
    colours = palette[torch.randint(len(palette), (batch,))] + (torch.rand(batch, 1) * 36 - 18)
    films = video_data.films(glyph, motions, colours.clamp(0, 255))
    return films.contiguous(memory_format=torch.channels_last_3d)


def _spectrograms(motions: Tensor, varied: bool = False) -> Tensor:
    """Returns the spectrograms of motions' sounds, `[B, 2, M, BINS]`; `varied` ones are louder or softer."""
    count = len(video_data.MOTIONS)
    known = torch.stack([video_sound.log_mel(video_sound.sound(i, video_sound.MEL_RATE)) for i in range(count)])
    mel = known[motions, :, :MEL_FRAMES]
    return mel + torch.rand(len(mel), 1, 1, 1) - 0.5 if varied else mel


def _spectral_distance(output: Tensor, target: Tensor) -> Tensor:
    """Returns the mean difference of the logarithms of spectra of two lengths, of sounds `[B, 2, S]`."""
    total = output.new_zeros(())
    for size in (512, 2048):
        window = torch.hann_window(size)
        one, other = (
            torch.stft(x.flatten(0, 1), size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-3).log()
            for x in (output, target)
        )
        total = total + (one - other).abs().mean() * 0.1
    return total


def _initialise(modules: nn.ModuleDict) -> None:
    """Sets weights that PyTorch leaves empty or makes too large; gates begin closed, so that blocks change nothing."""
    transformer: Any = modules["transformer"]
    for embedding in (m for m in modules.modules() if isinstance(m, nn.Embedding)):
        nn.init.normal_(embedding.weight, std=0.02)
    for name, parameter in modules.named_parameters():
        if name.endswith("scale_shift_table") or "scale_shift_table" in name:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif name.endswith("learnable_registers"):
            nn.init.normal_(parameter, std=1.0)
    for layer in (transformer.proj_out, transformer.audio_proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _encode(modules: nn.ModuleDict, tokens: GemmaTokenizer, captions: list[str]) -> Any:
    padded = tokens(captions, video_layout.TEXT_LENGTH)
    connectors: Any = modules["connectors"]
    projection = connectors.project(padded.mask)
    modules["text_encoder"](padded.ids, padded.mask, projection.receive)
    return connectors(projection.result(), padded.mask)


def _autoencoders(work: Path) -> tuple[Any, Any]:
    """Returns both autoencoders with the statistics of their latents."""
    vae, audio_vae = _video_autoencoder(work), averaged(build("audio_vae"), work / "audio_vae.pt")
    with torch.no_grad():
        mel = _spectrograms(torch.arange(len(video_data.MOTIONS)))
        packed = audio_vae.packed(audio_vae.encode(mel).mean)
        audio_vae.latents_mean.copy_(packed.mean(dim=(0, 1)))
        audio_vae.latents_std.copy_(packed.std(dim=(0, 1)))
    return vae, audio_vae


def _latents(work: Path, font: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the normalised latents that the denoiser learns.

    These are tokens `[N, T, C]` of films, tokens `[M, A, C']` of the sound of each motion, and the films' triples
    (object, motion, colour) `[N, 3]`.
    """
    file = work / "latents.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        return state["films"], state["sounds"], state["triples"]
    vae, audio_vae = _autoencoders(work)
    glyphs, palette = video_data.glyphs(font), video_data.palette()
    hidden = video_data.held_out()
    triples = torch.tensor([triple for triple in video_data.triples() if triple not in hidden] * _SHADES)
    parts = []
    with torch.no_grad():
        for part in triples.split(64):
            colours = (palette[part[:, 2]] + torch.rand(len(part), 1) * 36 - 18).clamp(0, 255)
            z = vae.normalized(vae.encode(video_data.films(glyphs[part[:, 0]], part[:, 1], colours)).mean)
            parts.append(z.flatten(2).transpose(1, 2).contiguous())
        packed = audio_vae.packed(audio_vae.encode(_spectrograms(torch.arange(len(video_data.MOTIONS)))).mean)
        sounds = audio_vae.normalized(packed)
    state = {"films": torch.cat(parts), "sounds": sounds, "triples": triples}
    torch.save(state, file)
    return state["films"], state["sounds"], state["triples"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["resume", "vae", "audio_vae", "vocoder", "transformer", "export"])
    parser.add_argument("--work", type=Path, required=True, help="where unfinished training is kept")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at the start")
    parser.add_argument("--bfloat16", action="store_true", help="for processors that multiply it (AVX512-BF16, AMX)")
    parser.add_argument("--compile", action="store_true", help="the transformer: a quarter faster after some minutes")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--font", type=Path, default=data.FONT)
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "resume":
        resume(args.out, args.work)
    elif args.stage == "export":
        export(args.work, args.out)
    elif args.stage == "vae":
        train_vae(args.work, args.minutes, args.rate, args.bfloat16, args.font)
    elif args.stage == "transformer":
        train_transformer(args.work, args.minutes, args.rate, args.bfloat16, args.font, args.compile)
    else:
        {"audio_vae": train_audio_vae, "vocoder": train_vocoder}[args.stage](args.work, args.minutes, args.rate)


if __name__ == "__main__":
    main()
