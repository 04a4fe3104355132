"""Computes the weights of the tiny autoencoder's encoder instead of training it: a patch's principal components.

Every 4 x 4 patch of pixels has 48 numbers. Over the images of this data set, a few directions among them hold nearly
everything; the latents are the coordinates along those. A network of the published architecture computes exactly that
with suitable weights:

- residual branches end in zeros, so that only their skip connections act;
- a strided convolution gathers 2 x 2 neighbours into channels; the second one also turns 48 numbers into coordinates;
- a group norm hardly sees the signal where large constants of both signs share its group: it divides by a number that
  is known beforehand, which its own weight multiplies back;
- `silu(y) - silu(-y) = y` takes the coordinates through the last nonlinearity unchanged.

The decoder, which has to guess the details that the coordinates leave out, is trained.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from diffuse.models.vae.autoencoder_kl import AutoencoderKL

CONSTANT = 32.0  # against signals of about 1
PATCH = 4


@torch.no_grad()
def set_encoder_weights(vae: AutoencoderKL, images: Tensor) -> None:
    """Sets the weights of `vae.encoder` and `vae.quant_conv` from `images` `[N, 3, H, W]` in -1..1."""
    config = vae.config
    encoder: Any = vae.encoder
    latents, groups = config.latent_channels, config.norm_num_groups
    directions, mean = _principal_components(images, latents)

    for parameter in encoder.parameters():
        parameter.zero_()
    encoder.conv_in.weight[:3, :, 1, 1] = torch.eye(3)
    first, second, last = encoder.down_blocks
    for dy in range(2):
        for dx in range(2):
            for colour in range(3):
                first.downsamplers[0].conv.weight[(dy * 2 + dx) * 3 + colour, colour, dy, dx] = 1
    _eye(second.resnets[0].conv_shortcut, 12)
    # A patch's row is 2 * outer + inner, its column likewise: the outer are this convolution's taps, the inner and the
    # colour its channels. [latent, colour, outer y, inner y, outer x, inner x] -> [latent, channel, outer y, outer x]
    taps = directions.view(latents, 3, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(latents, 12, 2, 2)
    second.downsamplers[0].conv.weight[:latents, :12, :2, :2] = taps
    second.downsamplers[0].conv.bias[:latents] = -mean

    width, each = config.block_out_channels[-1] // groups, latents // groups
    constants = (width - 2 * each) // 2
    deviation = CONSTANT * (2 * constants / width) ** 0.5
    for i in range(latents):
        plus = i // each * width + i % each
        minus = plus + each
        last.resnets[0].conv_shortcut.weight[plus, i] = 1
        last.resnets[0].conv_shortcut.weight[minus, i] = -1
        encoder.conv_norm_out.weight[[plus, minus]] = deviation
        encoder.conv_out.weight[i, plus, 1, 1] = 1
        encoder.conv_out.weight[i, minus, 1, 1] = -1
    for group in range(groups):
        start = group * width + 2 * each
        last.resnets[0].conv_shortcut.bias[start : start + constants] = CONSTANT
        last.resnets[0].conv_shortcut.bias[start + constants : start + 2 * constants] = -CONSTANT
    encoder.conv_out.bias[latents:] = -12.0  # logarithm of the variance: the latents are all but exact
    if vae.quant_conv is not None:
        vae.quant_conv.weight.copy_(torch.eye(2 * latents)[:, :, None, None])
        nn.init.zeros_(cast(Tensor, vae.quant_conv.bias))


def _principal_components(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns directions `[count, 3 * 4 * 4]` of the patches, and the mean along each `[count]`.

    A coordinate's deviation is the fourth root of its variance: whitened half way, so that details count with the
    denoiser, and the colours of surfaces more.
    """
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [N, 3, H / 4, W / 4, 4, 4]
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH).double()
    variances, vectors = torch.linalg.eigh(torch.cov(flat.T))
    variances, vectors = variances.flip(0)[:count], vectors.flip(1)[:, :count]
    directions = (vectors / variances**0.25).T
    return directions.float(), (directions @ flat.mean(0)).float()


def _eye(layer: nn.Conv2d, channels: int) -> None:
    for i in range(channels):
        layer.weight[i, i] = 1
