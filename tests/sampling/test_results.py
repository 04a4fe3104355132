"""The output of a pipeline, in parts: each has its own frames, sound and latents, and its share of the time."""

from __future__ import annotations

import numpy as np
import torch

from diffuse.sampling.results import PipelineOutput, Step


def output(count: int) -> PipelineOutput:
    """Returns films of two frames with sound, which hold their own number."""
    numbers = np.arange(count)
    return PipelineOutput(
        frames=np.broadcast_to(numbers[:, None, None, None, None], (count, 2, 4, 4, 3)).astype(np.uint8),
        latents={"video": torch.arange(count).float()[:, None], "audio": 10 + torch.arange(count).float()[:, None]},
        timings={"denoise_s": 4.0},
        step_seconds=[2.0, 2.0],
        memory={"peak_gib": 1.0},
        fps=24.0,
        sound=np.broadcast_to(numbers[:, None, None], (count, 2, 100)).astype(np.float32),
        sample_rate=24000,
        batch_seeds=tuple(range(7, 7 + count)),
    )


def test_parts_have_their_own_results() -> None:
    first, second = output(4).split([1, 3])
    assert (first.batch_index, second.batch_index) == (0, 1)
    assert first.batch_seeds == second.batch_seeds == (7, 8, 9, 10)
    assert second.frames.shape == (3, 2, 4, 4, 3) and set(second.frames[:, 0, 0, 0, 0]) == {1, 2, 3}
    assert second.sound is not None and second.sound[:, 0, 0].tolist() == [1, 2, 3]
    assert {name: part[:, 0].tolist() for name, part in second.latents.items()} == {
        "video": [1, 2, 3],
        "audio": [11, 12, 13],
    }
    assert (second.fps, second.sample_rate) == (24.0, 24000)


def test_parts_share_the_time_and_the_peak() -> None:
    first, second = output(4).split([1, 3])
    assert (first.timings["denoise_s"], second.timings["denoise_s"]) == (1.0, 3.0)
    assert (first.step_seconds, second.step_seconds) == ([0.5, 0.5], [1.5, 1.5])
    assert first.memory == second.memory == {"peak_gib": 1.0}


def test_the_only_part_is_the_whole() -> None:
    whole = output(2)
    assert whole.split([2]) == [whole]


def test_a_preview_shows_first_frames() -> None:
    step = Step(0, 1, 999.0, 0.1, torch.zeros(2, 1), lambda: output(2).frames)
    assert [np.asarray(image)[0, 0, 0] for image in step.preview()] == [0, 1]
