"""One step of the denoiser, guided (batch 2), against diffusers: SD 2.1's shape at a quarter of its width.

python tests/benchmarks/unet_step.py [--width 320] [--size 64] [--device cuda]
"""

from __future__ import annotations

from functools import partial

import torch
from diffusers import UNet2DConditionModel as Peer
from harness import arguments, compare, pairs, randomised
from module import from_peer


def main() -> None:
    options = arguments(__doc__ or "", width=80, size=32)
    width, size = options.width, options.size
    peer = randomised(
        Peer(
            sample_size=size,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            attention_head_dim=tuple(max(1, width * k // 64) for k in (1, 2, 4, 4)),
            cross_attention_dim=1024,
            norm_num_groups=16,
            use_linear_projection=True,
        )
    )
    for name, ours, theirs in pairs(from_peer("unet", peer), peer, options):
        kind = {"device": options.device, "dtype": next(theirs.parameters()).dtype}
        latents, text = torch.randn(2, 4, size, size).to(**kind), torch.randn(2, 77, 1024).to(**kind)
        timestep = torch.tensor(481)
        compare(
            f"unet step, {width} wide, {size} x {size}, {name}",
            partial(ours, latents, timestep, text),
            partial(theirs, latents, timestep, text, return_dict=False),
            repetitions=options.repetitions,
            device=options.device,
        )


if __name__ == "__main__":
    main()
