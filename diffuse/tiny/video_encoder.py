"""Computes the weights with which the tiny video autoencoder is linear: coordinates along principal components.

A latent stands for a block of 8 frames of 16 x 16 pixels, 6,144 numbers. Over the films of this data set a few dozen
directions among them hold nearly everything; latents are the coordinates along those. Networks of the published
architecture compute them, and the blocks from them, with suitable weights:

- residual branches end in zeros, so that only their skip connections act, until they are trained;
- every convolution uses its middle tap alone: it turns the channels of one place into fewer, or into more;
- a downsampler adds means of its input to what it gathers. Its convolution is so large that they hardly count;
- the last norm divides by a number that is known beforehand, where one channel is a large constant;
- `silu(y)` of what is then small is `y / 2`.

The encoder stays so. The decoder begins so, and learns the details that the coordinates leave out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffuse.models.vae.autoencoder_kl_ltx2_video import AutoencoderKLLTX2Video, to_patches
from diffuse.models.vae.ltx2_video_blocks import space_to_depth

_GAIN = 16.0  # of a downsampler's convolution over the means that are added to it
_FIRST = 2.0**-12  # of the pixels, which the gains make large: weights are stored in half precision
_CONSTANT_OF_LATENTS = 4000.0  # of the channel that is constant, over the root mean square of the others
_CONSTANT = 40.0  # root mean square of the channels of decoded pixels, of which the signal's are about 1
_ROWS = 200_000  # vectors of which the principal components are computed


@torch.no_grad()
def set_video_autoencoder_weights(vae: AutoencoderKLLTX2Video, films: Tensor) -> None:
    """Sets all weights of `vae`, and the statistics of its latents, from `films` `[N, 3, 8 * k + 1, H, W]` in -1..1.

    A normalised coordinate's deviation is the fourth root of its variance: whitened half way, so that details count
    with the denoiser, and the colours of surfaces more.
    """
    for name, parameter in vae.named_parameters():
        # Branches that are to be trained begin with their first convolution as PyTorch makes it.
        if ".resnets." not in name or ".conv2." in name:
            parameter.zero_()
    _set_encoder(vae.encoder, films)
    z = vae.encode(films).mean
    deviation = z.std(dim=(0, 2, 3, 4))
    vae.latents_mean.copy_(z.mean(dim=(0, 2, 3, 4)))
    vae.latents_std.copy_(deviation.sqrt() * deviation.mean().sqrt())
    _set_decoder(vae.decoder, z, films)


def _set_encoder(encoder: Any, films: Tensor) -> None:
    patches = films.shape[1] * encoder.patch**2
    _place(encoder.conv_in, _FIRST * torch.eye(patches))
    x = encoder.conv_in(to_patches(films, encoder.patch))
    for block in encoder.down_blocks:
        sampler = block.downsamplers[0]
        is_last = block is encoder.down_blocks[-1]
        count = sampler.conv.conv.out_channels - (1 if is_last else 0)  # one is for the constant
        _place(sampler.conv, _GAIN * _principal_directions(x, count))
        if is_last:
            size = float(sampler(x).square().mean().sqrt())
            sampler.conv.conv.bias[count] = _CONSTANT_OF_LATENTS * size
        x = sampler(x)
    norm = x.square().mean(dim=1).sqrt().mean()
    signal = x.shape[1] * count // (count + 1)
    directions = torch.zeros(encoder.conv_out.conv.out_channels - 1, x.shape[1])
    directions[:, :signal] = _principal_directions(x[:, :signal], len(directions))
    scale = (x[:, :signal].square().sum(dim=1).mean() / patches / 128).sqrt()  # a pixel's coordinates are of its size
    _place(encoder.conv_out, 2 * norm / scale * directions)
    encoder.conv_out.conv.bias[len(directions) :] = -12.0  # logarithm of the variance: the latents are all but exact


def _set_decoder(decoder: Any, z: Tensor, films: Tensor) -> None:
    """Sets the weights with which blocks of pixels are their best linear guess from the latents `z`."""
    patches = to_patches(films, decoder.patch)
    samplers = [block.upsamplers[0] for block in decoder.up_blocks]
    sides = [math.prod(side) for side in zip(*(sampler.stride for sampler in samplers), strict=True)]
    # The first frame's latent is that of the frame repeated; of what it is decoded to, all but one frame is cut off.
    blocks = _blocks(torch.cat((patches[:, :, :1].expand(-1, -1, sides[0] - 1, -1, -1), patches), dim=2), sides)
    features = z.movedim(1, -1).flatten(0, -2)
    guess = torch.linalg.lstsq(features, blocks.flatten(1)).solution
    _place(decoder.conv_in, torch.eye(z.shape[1]))
    basis = guess.unflatten(1, blocks.shape[1:])
    for sampler in samplers:
        basis, features = _set_upsampler(sampler, basis, features)
    _, copies = _channels(samplers[-1])
    samplers[-1].conv.conv.bias[-copies:] = _CONSTANT * decoder.conv_out.conv.in_channels**0.5
    for resnet in decoder.up_blocks[-1].resnets:
        resnet.conv1.conv.weight[:, -1] = 0
    _place(decoder.conv_out, 2 * _CONSTANT * torch.eye(patches.shape[1]))


def _set_upsampler(sampler: Any, basis: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Sets the weights that give each of the parts that a place becomes, along their principal components.

    Args:
        sampler: the upsampler.
        basis: the block of numbers that each channel of its input stands for, `[channels, C, t, h, w]`.
        features: examples of its input, `[N, channels]`.

    Returns:
        The same of its output.
    """
    width, _ = _channels(sampler)
    sides = [side // stride for side, stride in zip(basis.shape[2:], sampler.stride, strict=True)]
    parts = _blocks(basis, sides).flatten(1).unflatten(0, (len(basis), -1))  # [channels, parts, numbers of a part]
    covariance = torch.einsum("fpn,fg,gpm->nm", parts, features.T @ features, parts).double()
    directions = _greatest(covariance, width) if len(covariance) > width else torch.eye(len(covariance))
    outputs = torch.einsum("fpn,dn->dpf", parts, directions)
    _place(sampler.conv, outputs.flatten(0, 1))
    return directions.unflatten(1, (-1, *sides)), torch.einsum("nf,dpf->npd", features, outputs).flatten(0, 1)


def _channels(sampler: Any) -> tuple[int, int]:
    """Returns the channels of an upsampler's output, and the places that one of its input becomes."""
    parts = math.prod(sampler.stride)
    return sampler.conv.conv.out_channels // parts, parts


def _blocks(x: Tensor, sides: list[int]) -> Tensor:
    """Cuts `[N, C, F, H, W]` into blocks `[N * blocks, C, t, h, w]`, in the order of time, rows and columns."""
    t, h, w = sides
    return space_to_depth(x, (t, h, w)).movedim(1, -1).flatten(0, 3).unflatten(1, (-1, t, h, w))


def _place(layer: Any, matrix: Tensor) -> None:
    """Sets a convolution to what `matrix` `[out, in]` makes of the channels of one place."""
    rows, columns = matrix.shape
    layer.conv.weight[:rows, :columns, layer.front, 1, 1] = matrix


def _principal_directions(x: Tensor, count: int) -> Tensor:
    """Returns directions `[count, C]` of the vectors at the places of `x` `[N, C, *sides]`, the greatest first."""
    rows = x.movedim(1, -1).flatten(0, -2)
    rows = rows[torch.randperm(len(rows))[:_ROWS]].double()
    return _greatest(rows.T @ rows, count)


def _greatest(covariance: Tensor, count: int) -> Tensor:
    """Returns the directions `[count, C]` in which a covariance `[C, C]`, float64, is the greatest."""
    return torch.linalg.eigh(covariance)[1].flip(1)[:, :count].T.float()
