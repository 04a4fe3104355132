"""Films that are encoded and decoded in tiles of space and time, blended where they meet.

Memory is that of one tile and of what is finished. A tile is a whole film to the autoencoder: it continues a frame at
its edges, and takes the tile's first frame for a film's. So tiles overlap, in latents that are computed more than once,
and the results are added with weights that rise and fall over the overlap. In time, a tile that begins at latent `s`
begins with frame `t * s` of the film, and has but one frame of that latent; it is left to the tile before.

The last tile of a side reaches back, so that none is narrower than the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffuse.models.vae.autoencoder_kl_ltx2_video import AutoencoderKLLTX2Video


@dataclass(frozen=True)
class VideoTiling:
    """The size of tiles, in latents, and how many of them neighbours share."""

    side: int  # of a square tile
    overlap: int
    frames: int
    frames_overlap: int

    def __post_init__(self) -> None:
        for tile, overlap, name in (
            (self.side, self.overlap, "overlap"),
            (self.frames, self.frames_overlap, "frames_overlap"),
        ):
            if not 0 <= overlap <= max(tile - 1, 0) or tile < 1:
                raise ValueError(f"{name} {overlap} must lie between 0 and one less than the tile, {tile}")
        if self.frames_overlap < 1:
            raise ValueError("tiles share a latent in time at least: of a tile's first there is but one frame")

    @staticmethod
    def of_pixels(vae: AutoencoderKLLTX2Video, side: int, frames: int) -> VideoTiling:
        """Returns tiles of about `side` pixels and `frames` frames, with an eighth and a third of them shared."""
        latents = max(side // vae.config.factor, 2)
        times = max(frames // vae.config.frames + 1, 2)
        return VideoTiling(latents, max(latents // 8, 1), times, max(times // 3, 1))

    def covers(self, shape: Sequence[int]) -> bool:
        """Tells whether one tile holds the latents `[..., F, h, w]`."""
        frames, height, width = shape[-3:]
        return frames <= self.frames and max(height, width) <= self.side


def decode_tiled(
    vae: AutoencoderKLLTX2Video,
    z: Tensor,
    tiling: VideoTiling,
    timestep: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Decodes latents `[B, C, k + 1, h, w]` to pixels `[B, 3, t * k + 1, h * f, w * f]` in tiles; see `vae.decode`."""
    films = []
    for i in range(len(z)):
        part = slice(i, i + 1)
        times = None if timestep is None else timestep[part]
        own = None if generators is None else generators[part]
        films.append(torch.cat(list(decoded_frames(vae, z[part], tiling, times, own)), dim=2))
    return torch.cat(films)


def decoded_frames(
    vae: AutoencoderKLLTX2Video,
    z: Tensor,
    tiling: VideoTiling,
    timestep: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Iterator[Tensor]:
    """Decodes the latents `[1, C, k + 1, h, w]` of one film in tiles, and gives its frames in runs `[1, 3, F, H, W]`.

    A run is given as soon as no later tile can change it. No more is kept than the overlap of two tiles in time.
    """
    step = vae.config.frames
    starts = _starts(z.shape[2], tiling.frames, tiling.frames_overlap)
    kept: Tensor | None = None  # what the tile before has of this tile's frames
    for number, start in enumerate(starts):
        end = min(start + tiling.frames, z.shape[2])
        pixels = _decode_plane(vae, z[:, :, start:end], tiling, timestep, generators)
        if start > 0:
            pixels = pixels[:, :, 1:]
        if kept is not None:
            shared = kept.shape[2]
            pixels = torch.cat((_blended(kept, pixels[:, :, :shared]), pixels[:, :, shared:]), dim=2)
        following = step * (starts[number + 1] - start) + (1 if start == 0 else 0) if number + 1 < len(starts) else None
        if following is None:
            yield pixels
        else:
            kept = pixels[:, :, following:].clone()
            yield pixels[:, :, :following]


def encode_tiled(vae: AutoencoderKLLTX2Video, x: Tensor, tiling: VideoTiling) -> Tensor:
    """Encodes pixels `[B, 3, t * k + 1, H, W]` as means of latents `[B, C, k + 1, H / f, W / f]`, in tiles."""
    return torch.cat([_encode_film(vae, film, tiling) for film in x.split(1)])


def _encode_film(vae: AutoencoderKLLTX2Video, x: Tensor, tiling: VideoTiling) -> Tensor:
    factor, step = vae.config.factor, vae.config.frames
    frames = (x.shape[2] - 1) // step + 1
    parts: list[Tensor] = []
    starts = _starts(frames, tiling.frames, tiling.frames_overlap)
    kept: Tensor | None = None
    for number, start in enumerate(starts):
        end = min(start + tiling.frames, frames)
        clip = x[:, :, step * start : step * (end - 1) + 1]
        plane = _Plane(clip.shape[-2] // factor, clip.shape[-1] // factor, tiling)
        for tile in plane.tiles():
            window = clip[..., _times(tile.rows, factor), _times(tile.columns, factor)]
            plane.add(tile, vae.encode(window).mode(), 1)
        latents = plane.result(x.dtype)
        if start > 0:
            latents = latents[:, :, 1:]  # the first is of one frame
        if kept is not None:
            shared = kept.shape[2]
            latents = torch.cat((_blended(kept, latents[:, :, :shared]), latents[:, :, shared:]), dim=2)
        if number + 1 < len(starts):
            following = starts[number + 1] - start + (1 if start == 0 else 0)
            kept = latents[:, :, following:]
            latents = latents[:, :, :following]
        parts.append(latents)
    return torch.cat(parts, dim=2)


def _decode_plane(
    vae: AutoencoderKLLTX2Video,
    z: Tensor,
    tiling: VideoTiling,
    timestep: Tensor | None,
    generators: Sequence[torch.Generator] | None,
) -> Tensor:
    """Decodes `[1, C, F, h, w]` in tiles of space alone."""
    plane = _Plane(z.shape[-2], z.shape[-1], tiling)
    if plane.is_one_tile:
        return vae.decode(z, timestep, generators)
    for tile in plane.tiles():
        plane.add(tile, vae.decode(z[..., tile.rows, tile.columns], timestep, generators), vae.config.factor)
    return plane.result(z.dtype)


class _Tile(NamedTuple):
    rows: slice
    columns: slice


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


class _Plane:
    """The sum of tiles, and of their weights, that lie beside each other."""

    def __init__(self, height: int, width: int, tiling: VideoTiling) -> None:
        self.sides = (height, width)
        self.tiling = tiling
        self.sum: Tensor | None = None
        self.weight: Tensor | None = None

    @property
    def is_one_tile(self) -> bool:
        """Tells whether nothing has to be blended."""
        return max(self.sides) <= self.tiling.side

    def tiles(self) -> Iterator[_Tile]:
        """Gives the tiles in latents, row by row."""
        (height, width), side, overlap = self.sides, self.tiling.side, self.tiling.overlap
        for top in _starts(height, side, overlap):
            for left in _starts(width, side, overlap):
                yield _Tile(slice(top, min(top + side, height)), slice(left, min(left + side, width)))

    def add(self, tile: _Tile, values: Tensor, factor: int) -> None:
        """Adds a tile's `[1, C, F, H, W]`, of `factor` values a latent along one side."""
        height, width = (side * factor for side in self.sides)
        if self.sum is None or self.weight is None:
            self.sum = values.new_zeros((*values.shape[:3], height, width), dtype=torch.float32)
            self.weight = values.new_zeros((height, width), dtype=torch.float32)
        overlap, device = self.tiling.overlap, values.device
        down, across = (_ramp(part, side, overlap, factor, device) for part, side in zip(tile, self.sides, strict=True))
        ramp = down[:, None] * across
        rows, columns = (_times(part, factor) for part in tile)
        self.sum[..., rows, columns] += values * ramp
        self.weight[rows, columns] += ramp

    def result(self, dtype: torch.dtype) -> Tensor:
        """Returns the weighted mean `[1, C, F, H, W]`."""
        assert self.sum is not None and self.weight is not None
        return self.sum.div_(self.weight).to(dtype)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Returns where tiles begin so that they cover `size`; the last is moved back to end exactly there."""
    last = max(size - tile, 0)
    return [*range(0, last, tile - overlap), last]


def _ramp(part: slice, side: int, overlap: int, factor: int, device: torch.device) -> Tensor:
    """Returns weights `[N * factor]` of a part `N` that rise and fall over the overlap, not at an edge of the film."""
    size, shared = (part.stop - part.start) * factor, overlap * factor
    distance = torch.arange(1, size + 1, device=device, dtype=torch.float32)
    full = torch.full_like(distance, shared + 1.0)
    rise = distance if part.start > 0 else full
    fall = distance.flip(0) if part.stop < side else full
    return torch.minimum(rise, fall).clamp(max=shared + 1.0) / (shared + 1.0)


def _blended(before: Tensor, after: Tensor) -> Tensor:
    """Goes over from `before` to `after`, `[1, C, F, H, W]` both, along their frames."""
    frames = before.shape[2]
    share = torch.arange(1, frames + 1, device=before.device, dtype=torch.float32) / (frames + 1)
    return torch.lerp(before.float(), after.float(), share[:, None, None]).to(before.dtype)
