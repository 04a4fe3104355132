"""Feature maps in strips of rows, of which only one is computed at a time.

A layer computes a strip from the rows that it needs of the strips before, its neighbours' first and last among them, so
that convolutions see no seam. Group norms need the whole map: the sums for them are taken as strips are made, and every
strip is normalised with the same mean and variance. The result is that of the whole map but for rounding. Strips that
nothing needs any more are dropped while those of the next map are made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.layers.resnet import Downsample2D, ResnetBlock2D, Upsample2D

_ROWS_IN_CACHE = 1024  # tokens whose squares a processor adds up before it goes on


class Strips:
    """A map `[1, C, H, W]` in strips, top down.

    Args:
        limit: the numbers that a strip may have, of the map that is read or of the one that is made.
        device: where it computes.
        store: where strips are while they are not computed with.
    """

    def __init__(self, limit: int, device: torch.device, store: torch.device) -> None:
        self.limit = limit
        self.device = device
        self.store = store
        self.height = 0
        self._parts: list[Tensor | None] = []
        self._tops: list[int] = []
        self._sums: Tensor | None = None  # [2, C] of the numbers and of their squares

    @classmethod
    def from_map(cls, x: Tensor, limit: int, store: torch.device) -> Strips:
        """Returns a whole map `[1, C, H, W]` as one strip."""
        result = cls(limit, x.device, store)
        result.append(x)
        return result

    @property
    def channels(self) -> int:
        """The channels of the map."""
        return self._first().shape[1]

    @property
    def width(self) -> int:
        """The columns of the map."""
        return self._first().shape[-1]

    def append(self, part: Tensor) -> None:
        """Adds a strip `[1, C, h, W]` at the lower edge."""
        sums = _sums(part)
        self._sums = sums if self._sums is None else self._sums + sums
        if self.store != self.device:
            pinned = self.device.type == "cuda" and self.store.type == "cpu"
            shape, layout = part.shape, torch.channels_last
            kept = torch.empty(shape, dtype=part.dtype, device=self.store, memory_format=layout, pin_memory=pinned)
            part = kept.copy_(part, non_blocking=pinned)
        self._parts.append(part)
        self._tops.append(self.height)
        self.height += part.shape[2]

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns rows `[1, C, stop - start, W]` on the device that computes."""
        found = []
        for top, part in zip(self._tops, self._parts, strict=True):
            if part is not None and top < stop and top + part.shape[2] > start:
                piece = part[:, :, max(start - top, 0) : stop - top]
                found.append(piece.to(self.device, non_blocking=piece.is_pinned()) if piece.is_cpu else piece)
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def drop_above(self, row: int) -> None:
        """Drops the strips that end above a row."""
        for index, (top, part) in enumerate(zip(self._tops[:-1], self._parts, strict=False)):
            if part is not None and top + part.shape[2] <= row:
                self._parts[index] = None

    def whole(self) -> Tensor:
        """Returns the whole map `[1, C, H, W]` on the device that computes. The strips are gone."""
        result = self.rows(0, self.height)
        self._parts.clear()
        return result

    def make(self, height: int, width: int, channels: int, strip: Callable[[int, int], Tensor]) -> Strips:
        """Makes a map `[1, C, height, width]` of `strip(start, stop)`, which returns those rows.

        Args:
            channels: the most of the maps that are read and made.
        """
        result = Strips(self.limit, self.device, self.store)
        step = max(self.limit // (channels * width), 1)
        for start in range(0, height, step):
            result.append(strip(start, min(start + step, height)))
        return result

    def activation(self, norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        """Returns what maps rows `[1, C, h, W]` to their group norm, with the whole map's statistics, and SiLU."""
        assert self._sums is not None and norm.weight is not None
        count = self.height * self.width * self.channels // norm.num_groups
        mean, square = self._sums.unflatten(1, (norm.num_groups, -1)).sum(2) / count  # [2, G]
        variance = (square - mean * mean).clamp(min=0)
        mean, variance = (each.repeat_interleave(self.channels // norm.num_groups).float() for each in (mean, variance))
        weight, bias = norm.weight.float(), norm.bias.float()

        def activate(x: Tensor) -> Tensor:
            normalised = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)
            return F.silu(normalised, inplace=True)

        return activate

    def _first(self) -> Tensor:
        # The last strip is never dropped.
        part = self._parts[-1]
        assert part is not None
        return part


def resnet(block: ResnetBlock2D, x: Strips) -> Strips:
    """Computes a residual block without a timestep; `x` is used up."""
    activate, height = x.activation(block.norm1), x.height
    shortcut = None if block.conv_shortcut is None else Strips(x.limit, x.device, x.store)

    def first(start: int, stop: int) -> Tensor:
        h = _convolve(block.conv1, x, start, stop, activate)
        if shortcut is not None and block.conv_shortcut is not None:
            shortcut.append(block.conv_shortcut(x.rows(start, stop)))
            x.drop_above(stop - 1)
        return h

    inner, outer = block.conv1.in_channels, block.conv1.out_channels
    h = x.make(height, x.width, max(inner, outer), first)
    activate_h, rest = h.activation(block.norm2), x if shortcut is None else shortcut

    def second(start: int, stop: int) -> Tensor:
        y = _convolve(block.conv2, h, start, stop, activate_h)
        h.drop_above(stop - 1)
        y += rest.rows(start, stop)
        rest.drop_above(stop)
        return y

    return h.make(height, h.width, max(inner, outer), second)


def convolve_in(conv: nn.Conv2d, pixels: Tensor, limit: int, store: torch.device) -> Strips:
    """Computes the first convolution of a whole map `[1, C, H, W]`."""
    x = Strips.from_map(pixels, limit, store)
    return x.make(x.height, x.width, conv.out_channels, lambda start, stop: _convolve(conv, x, start, stop))


def convolve_out(norm: nn.GroupNorm, conv: nn.Conv2d, x: Strips) -> Tensor:
    """Computes the last norm, SiLU and convolution, to a whole map `[1, C, H, W]`; `x` is used up."""
    activate = x.activation(norm)

    def last(start: int, stop: int) -> Tensor:
        y = _convolve(conv, x, start, stop, activate)
        x.drop_above(stop - 1)
        return y

    return x.make(x.height, x.width, x.channels, last).whole()


def upsample(block: Upsample2D, x: Strips) -> Strips:
    """Doubles rows and columns; `x` is used up."""
    height = x.height

    def strip(start: int, stop: int) -> Tensor:
        first, last = max(start - 1, 0) // 2, min(stop // 2 + 1, height)
        y = block(x.rows(first, last))[:, :, start - 2 * first : stop - 2 * first]
        x.drop_above((stop - 1) // 2)
        return y

    return x.make(2 * height, 2 * x.width, x.channels, strip)


def downsample(block: Downsample2D, x: Strips) -> Strips:
    """Halves rows and columns, padding the far sides only; `x` is used up."""
    height = x.height

    def strip(start: int, stop: int) -> Tensor:
        rows = x.rows(2 * start, min(2 * stop + 1, height))
        # The block pads a row below. Where the map goes on there, the last row of the result is not wanted.
        y = block(rows)[:, :, : stop - start]
        x.drop_above(2 * stop)
        return y

    return x.make(height // 2, x.width // 2, 2 * x.channels, strip)


def _convolve(
    conv: nn.Conv2d, x: Strips, start: int, stop: int, activate: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Returns rows of a 3 x 3 convolution, from one row more on both sides where the map goes on."""
    above, below = max(start - 1, 0), min(stop + 1, x.height)
    rows = x.rows(above, below)
    if activate is not None:
        rows = activate(rows)
    y: Tensor = conv(rows)
    return y[:, :, start - above : stop - above]


def _sums(x: Tensor) -> Tensor:
    """Returns the sums of the numbers of each channel of `[1, C, h, W]` and of their squares, `[2, C]` in float64."""
    tokens = x.permute(0, 2, 3, 1).flatten(0, 2)  # [h * W, C]
    total = torch.zeros(2, tokens.shape[1], dtype=torch.float64)
    sums = [total.to(x.device)] if x.device.type != "mps" else [total.float().to(x.device)]  # which has no float64
    for some in tokens.split(_ROWS_IN_CACHE if x.is_cpu else len(tokens)):
        numbers = some.float()
        sums[0] = sums[0] + torch.stack([numbers.sum(0), (numbers * numbers).sum(0)])
    return sums[0]
