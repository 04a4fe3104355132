"""What comes back from a pipeline: its output, and each step on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class Step:
    """What `on_step` is told after a denoising step, of the batch that it was a step of."""

    index: int  # 0-based, over all batches of the request
    total: int
    timestep: float
    seconds: float
    latents: Tensor = field(repr=False, compare=False)  # `[B, C, h, w]`, as the sampler has them; not to be changed
    decode: Callable[[], np.ndarray] = field(repr=False, compare=False)  # gives uint8 `[B, H, W, 3]`

    def preview(self) -> list[Image.Image]:
        """The batch as the model now thinks it will be. Decodes, which takes longer than a step of a small model; to be
        called before `on_step` returns."""
        from PIL import Image

        return [Image.fromarray(pixels) for pixels in self.decode()]


@dataclass
class Made:
    """What a pipeline gives back: `images` is uint8 `[N, H, W, 3]`, in the order of the request's seeds."""

    images: np.ndarray
    timings: Mapping[str, float]  # load_s, encode_s, denoise_s, decode_s, total_s
    step_seconds: list[float]
    memory: Mapping[str, float]  # peak_gib (device), rss_peak_gib
    latents: Tensor  # `[N, C, h, w]` on the CPU, float32: what was decoded
    warnings: list[str] = field(default_factory=list)
    together: tuple[int, ...] = ()  # the seeds of all that was made at once, of which these are a part
    first: int = 0  # the place of the first of these among them

    def split(self, counts: Sequence[int]) -> list[Made]:
        """In parts of so many images each; a part took the share of the time that it has of the images."""
        if len(counts) == 1:
            return [self]
        parts, start = [], 0
        for count in counts:
            share, images = count / len(self.images), slice(start, start + count)
            timings = {name: seconds * share for name, seconds in self.timings.items()}
            steps = [seconds * share for seconds in self.step_seconds]
            latents = self.latents[images]
            part = Made(self.images[images], timings, steps, self.memory, latents, self.warnings, self.together, start)
            parts.append(part)
            start += count
        return parts
