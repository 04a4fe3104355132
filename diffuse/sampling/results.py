"""Results of a pipeline: its output, and each step on the way there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A denoising step that has ended, of one batch; what `on_step` is called with."""

    index: int  # 0-based, over all batches of the request
    total: int
    timestep: float
    seconds: float
    latents: Tensor = field(repr=False, compare=False)  # `[B, ...]`, as the sampler has them; not to be changed
    decode: Callable[[], np.ndarray] = field(repr=False, compare=False)  # returns uint8 `[B, F, H, W, 3]`

    def preview(self) -> list[Image.Image]:
        """Returns the first frame of each result of the batch, as the model now predicts it.

        Decoding takes longer than a step of a small model. Call it before `on_step` returns.
        """
        from PIL import Image

        return [Image.fromarray(frames[0]) for frames in self.decode()]


@dataclass(frozen=True)
class DecodedMedia:
    """Decoded results, before it is known how long they took."""

    frames: np.ndarray  # uint8 `[N, F, H, W, 3]`
    fps: float | None = None  # frames a second; None for images
    sound: np.ndarray | None = None  # float32 `[N, C, S]` from -1 to 1
    sample_rate: int | None = None  # of the sound, in Hz


@dataclass(frozen=True)
class PipelineOutput:
    """The results of a pipeline, in the order of the request's seeds. A single image is a film of one frame."""

    frames: np.ndarray  # uint8 `[N, F, H, W, 3]`
    latents: Mapping[str, Tensor]  # by name, `[N, ...]` on the CPU in float32: what was decoded
    timings: Mapping[str, float]  # seconds: load_s, encode_s, denoise_s, decode_s, total_s
    step_seconds: Sequence[float]
    memory: Mapping[str, float]  # GiB: peak_gib on the device, rss_peak_gib of the process
    warnings: Sequence[str] = ()
    step_downs: Sequence[Mapping[str, Any]] = ()  # what was done with less, and where, since memory ran out
    quantized: Mapping[str, Any] = field(default_factory=dict)  # components whose weights are, and by how much off
    fps: float | None = None  # frames a second; None for images
    sound: np.ndarray | None = None  # float32 `[N, C, S]` from -1 to 1
    sample_rate: int | None = None  # of the sound, in Hz
    batch_seeds: tuple[int, ...] = ()  # the seeds of all results that were made at once, these among them
    batch_index: int = 0  # the place of the first of these among them

    def split(self, counts: Sequence[int]) -> list[PipelineOutput]:
        """Splits the output into parts of `counts` results each.

        A part is given that share of the time which it has of the results.
        """
        if len(counts) == 1:
            return [self]
        parts, start = [], 0
        for count in counts:
            share, rows = count / len(self.frames), slice(start, start + count)
            parts.append(
                replace(
                    self,
                    frames=self.frames[rows],
                    latents={name: latents[rows] for name, latents in self.latents.items()},
                    timings={name: seconds * share for name, seconds in self.timings.items()},
                    step_seconds=[seconds * share for seconds in self.step_seconds],
                    sound=None if self.sound is None else self.sound[rows],
                    batch_index=start,
                )
            )
            start += count
        return parts
