"""One step of LTX-2's transformer, guided (batch 2), against diffusers, of 2.0 and of 2.3.

python tests/benchmarks/transformer_step.py                one thread, a tiny and a medium architecture
python tests/benchmarks/transformer_step.py --threads 2    as many as torch takes by itself on two cores
python tests/benchmarks/transformer_step.py --sizes full --dtypes bfloat16 --repetitions 3     the published one; 80 GB

Rotary embeddings are made once a film here, and at each step by diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Call, module_against_peer
from torch import Tensor

# Frames, rows and columns of the latents, frames of the sound's, tokens of the text: by the transformer's width.
SIZES = {192: (3, 2, 2, 18, 32), 768: (3, 8, 12, 42, 128), 4096: (16, 16, 24, 126, 1024)}


def calls(ours: Any, peer: Any, kind: dict[str, Any]) -> tuple[Call, Call]:
    config = ours.config
    frames, rows, columns, sound, tokens = SIZES[config.video.width]
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator).to(**kind)

    widths = (
        (config.caption_channels,) * 2 if config.use_prompt_embeddings else (config.video.width, config.audio.width)
    )
    timestep = torch.tensor([700.0, 700.0], device=kind["device"])
    given = {
        "hidden_states": noise(frames * rows * columns, config.in_channels),
        "audio_hidden_states": noise(sound, config.audio_in_channels),
        "encoder_hidden_states": noise(tokens, widths[0]),
        "audio_encoder_hidden_states": noise(tokens, widths[1]),
        "timestep": timestep,
        "sigma": timestep,
        "use_cross_timestep": not config.use_prompt_embeddings,
    }
    sizes = {"num_frames": frames, "height": rows, "width": columns, "audio_num_frames": sound, "fps": 24.0}
    places = ours.coordinates(frames, rows, columns, fps=24.0, audio_frames=sound)
    rotations = ours.rotations(*places, device=kind["device"])
    return (
        lambda: ours(**given, rotations=rotations).video,
        lambda: peer(**given, **sizes, return_dict=False)[0],
    )


if __name__ == "__main__":
    module_against_peer(__doc__, ["ltx2/transformer", "ltx2_3/transformer"], calls)
