"""Trains the tiny checkpoint, stage by stage; each goes on from where it stopped:

    python -m diffuse.tiny.train tokenizer --work FOLDER
    python -m diffuse.tiny.train encoder   --work FOLDER
    python -m diffuse.tiny.train decoder   --work FOLDER --minutes 60
    python -m diffuse.tiny.train unet      --work FOLDER --minutes 90    (needs the encoder, not the decoder)
    python -m diffuse.tiny.train export    --work FOLDER                  (writes diffuse/tiny/checkpoint)

`resume` instead of the first two makes a folder from the shipped checkpoint, so that its training can go on.

The denoiser learns velocities (Salimans and Ho, "Progressive Distillation", 2022) on a schedule whose last step is
pure noise (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024), together with its text
encoder. The checkpoint holds a running average of the weights. Time, not steps, sets the learning rate's decay, so that
a stage of any length ends well.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import trainers
from torch import Tensor, nn

from diffuse.models.text_encoder.clip import CLIPTextConfig, CLIPTextModel
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.models.unet.unet2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from diffuse.models.vae.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffuse.tiny import data, layout
from diffuse.tiny.encoder import set_encoder_weights
from diffuse.tiny.training import averaged, train

SHADES = 4  # latents kept of each (object, colour) pair


def make_encoder(work: Path) -> None:
    """Writes an autoencoder whose encoder is finished and whose decoder is untrained."""
    torch.manual_seed(0)
    vae = AutoencoderKL(layout.build_config(AutoencoderKLConfig, layout.VAE))
    set_encoder_weights(vae, next(_images(512)))
    torch.save({"mean": vae.state_dict()}, work / "vae.pt")
    print(f"encoder: scaling factor {_scaling_factor(vae)}")


def train_decoder(work: Path, minutes: float, rate: float, bfloat16: bool) -> None:
    """Trains the decoder on latents with a little noise, as a denoiser leaves some."""
    vae = averaged(AutoencoderKL(layout.build_config(AutoencoderKLConfig, layout.VAE)), work / "vae.pt")
    half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)
    images = _images(batch=4)
    deviation = 1 / _scaling_factor(vae)

    def compute_loss() -> Tensor:
        x = next(images)
        with torch.no_grad():
            z = vae.encode(x).mean
        z = z + torch.randn_like(z) * deviation * 0.2 * torch.rand(len(z), 1, 1, 1)
        return _difference(half["decoder"](half["post_quant_conv"](z)).float(), x)

    train("decoder", half, compute_loss, work, minutes=minutes, rate=rate, bfloat16=bfloat16)
    _report_vae(_trained_vae(work))


def train_unet(work: Path, minutes: float, rate: float, bfloat16: bool) -> None:
    """Trains denoiser and text encoder together, on the latents of all pairs that are not held out."""
    unet = UNet2DConditionModel(layout.build_config(UNet2DConditionConfig, layout.UNET))
    text_encoder = CLIPTextModel(layout.build_config(CLIPTextConfig, layout.TEXT_ENCODER))
    for embedding in (m for m in text_encoder.modules() if isinstance(m, nn.Embedding)):
        nn.init.normal_(embedding.weight, std=0.02)
    tokenizer = CLIPTokenizer.from_folder(work / "tokenizer")
    latents, pairs = _latents(work)
    names, colours = data.objects(), list(data.COLOURS)
    alphas = layout.alphas_cumprod()
    modules = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    rng, batch = random.Random(time.time_ns()), 32

    def compute_loss() -> Tensor:
        chosen = torch.randint(len(latents), (batch,))
        captions = [data.caption(names[i], colours[j], rng) for i, j in pairs[chosen].tolist()]
        text = text_encoder(tokenizer(captions).ids).last_hidden_state
        x = latents[chosen]
        # One from each of `batch` equal spans: less noise in the gradient than independent draws. Late timesteps come
        # more often: the content of the image is decided under much noise.
        t = (((torch.arange(batch) + torch.rand(batch)) / batch) ** 0.6 * len(alphas)).long()
        noise = torch.randn_like(x)
        a = alphas[t].sqrt()[:, None, None, None]
        s = (1 - alphas[t]).sqrt()[:, None, None, None]
        velocity = unet(a * x + s * noise, t, text)
        return F.mse_loss(velocity.float(), a * noise - s * x)

    train("unet", modules, compute_loss, work, minutes=minutes, rate=rate, average=0.998, bfloat16=bfloat16)


def train_tokenizer(work: Path) -> None:
    """Trains byte-pair merges under which every word of every caption is one token."""
    rng = random.Random(0)
    captions = [data.caption(name, colour, rng) for name in data.objects() for colour in data.COLOURS]
    layout.write_tokenizer(work / "tokenizer", [])
    tokenizer = CLIPTokenizer.from_folder(work / "tokenizer").tokenizer  # it splits text as CLIP does, and knows bytes
    trainer = trainers.BpeTrainer(
        vocab_size=layout.TEXT_ENCODER["vocab_size"] - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=layout.byte_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    layout.write_tokenizer(work / "tokenizer", [tuple(merge) for merge in merges])
    tokenizer = CLIPTokenizer.from_folder(work / "tokenizer").tokenizer
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(data.objects())]
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {np.mean(lengths):.2f} an object")


def resume(folder: Path, work: Path) -> None:
    """Writes a work folder from the checkpoint in `folder`: its weights, without optimizer state or training time."""
    shutil.copytree(folder / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    vae = load_file(folder / layout.WEIGHTS["vae"])
    decoder = {k: v.float() for k, v in vae.items() if k.startswith(("decoder.", "post_quant_conv."))}
    denoiser = {
        f"{name}.{key}": value.float()
        for name in ("unet", "text_encoder")
        for key, value in load_file(folder / layout.WEIGHTS[name]).items()
    }
    torch.save({"mean": {k: v.float() for k, v in vae.items()}}, work / "vae.pt")
    for name, weights in {"decoder": decoder, "unet": denoiser}.items():
        torch.save({"modules": weights, "mean": weights, "step": 0, "seconds": 0.0}, work / f"{name}.pt")


def export(work: Path, folder: Path) -> None:
    """Writes the averaged weights in half precision, with their configuration, in the diffusers layout."""
    modules = nn.ModuleDict(
        {
            "unet": UNet2DConditionModel(layout.build_config(UNet2DConditionConfig, layout.UNET)),
            "text_encoder": CLIPTextModel(layout.build_config(CLIPTextConfig, layout.TEXT_ENCODER)),
        }
    )
    averaged(modules, work / "unet.pt")
    vae = _trained_vae(work)
    layout.write_tiny_checkpoint(folder, work / "tokenizer", vae, modules, _scaling_factor(vae))


def _images(batch: int) -> Iterator[Tensor]:
    """Yields random images `[B, 3, SIDE, SIDE]` in -1..1."""
    glyphs = torch.from_numpy(data.glyphs(data.objects())).permute(0, 3, 1, 2).float()  # [N, 4, H, W], 0..255
    palette = torch.tensor(list(data.COLOURS.values())).float()
    while True:
        glyph = glyphs[torch.randint(len(glyphs), (batch,))]
        if random.random() < 0.3:
            glyph = glyph.roll((random.randint(-4, 4), random.randint(-4, 4)), (2, 3))
        colour = palette[torch.randint(len(palette), (batch,))] + (torch.rand(batch, 1) * 36 - 18)
        colour[: batch // 4] = torch.rand(batch // 4, 3) * 255
        alpha = glyph[:, 3:] / 255
        image = glyph[:, :3] * alpha + colour.clamp(0, 255)[:, :, None, None] * (1 - alpha)
        yield (image / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _difference(image: Tensor, target: Tensor) -> Tensor:
    """Returns the difference of pixels, and of their differences to the right and below, which keeps edges sharp."""
    error = image - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.25 * edges


def _latents(work: Path) -> tuple[Tensor, Tensor]:
    """Returns scaled latents `[N, C, h, w]` of all training pairs in several shades, and the pairs `[N, 2]`."""
    file = work / "latents.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        return state["latents"], state["pairs"]
    vae = averaged(AutoencoderKL(layout.build_config(AutoencoderKLConfig, layout.VAE)), work / "vae.pt")
    names, hidden = data.objects(), data.held_out(len(data.objects()))
    glyphs, palette = data.glyphs(names), np.array(list(data.COLOURS.values()), np.float32)
    pairs = [(i, j) for i in range(len(names)) for j in range(len(palette)) if (i, j) not in hidden] * SHADES
    rng, parts = np.random.default_rng(0), []
    for start in range(0, len(pairs), 128):
        part = np.array(pairs[start : start + 128])
        pixels = data.draw_on_colour(glyphs[part[:, 0]], data.shade(palette[part[:, 1]], rng))
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            parts.append(vae.encode(x).mean.contiguous())
    latents = torch.cat(parts) * _scaling_factor(vae)
    torch.save({"latents": latents, "pairs": torch.tensor(pairs)}, file)
    return latents, torch.tensor(pairs)


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL) -> float:
    """Returns one over the standard deviation of latents, to three digits; the denoiser's latents are scaled by it."""
    torch.manual_seed(0)
    random.seed(0)
    return float(f"{1 / float(vae.encode(next(_images(256))).mean.std()):.3g}")


@torch.no_grad()
def _report_vae(vae: AutoencoderKL) -> None:
    x = next(_images(128))
    error = (vae.decode(vae.encode(x).mode()).clamp(-1, 1) - x).square().mean(dim=(1, 2, 3)) / 4
    print(f"vae: {float((-10 * error.log10()).mean()):.2f} dB, scaling factor {_scaling_factor(vae)}", flush=True)


def _trained_vae(work: Path) -> AutoencoderKL:
    vae = averaged(AutoencoderKL(layout.build_config(AutoencoderKLConfig, layout.VAE)), work / "vae.pt")
    if (work / "decoder.pt").exists():
        half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
        averaged(half, work / "decoder.pt")
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tokenizer", "encoder", "resume", "decoder", "unet", "export"])
    parser.add_argument("--work", type=Path, required=True, help="where unfinished training is kept")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at the start")
    parser.add_argument("--bfloat16", action="store_true", help="for processors that multiply it (AVX512-BF16, AMX)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=data.HERE / "checkpoint")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "tokenizer":
        train_tokenizer(args.work)
    elif args.stage == "encoder":
        make_encoder(args.work)
    elif args.stage == "resume":
        resume(args.out, args.work)
    elif args.stage == "export":
        export(args.work, args.out)
    else:
        stage = {"unet": train_unet, "decoder": train_decoder}[args.stage]
        stage(args.work, args.minutes, args.rate, args.bfloat16)


if __name__ == "__main__":
    main()
