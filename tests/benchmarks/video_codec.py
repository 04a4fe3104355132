"""Decoding and encoding a film and its sound with LTX-2's autoencoders and vocoders, against diffusers.

python tests/benchmarks/video_codec.py                  one thread, the tiny and a medium architecture
python tests/benchmarks/video_codec.py --threads 2      as many as torch takes by itself on two cores
python tests/benchmarks/video_codec.py --parts vocoder  one part alone
python tests/benchmarks/video_codec.py --sizes full --dtypes bfloat16 --repetitions 3    the published ones; 16 GB

The vocoder of 2.3 is meant for float32; its row in bfloat16 is for comparison.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import harness
import ltx2_codec_peers
import torch
from harness import Call

# What is wider than the tests' own; tiny is about as large as a codec that a CPU can train.
VIDEO: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "2.0": {"block_out_channels": (32, 64, 64, 128), "decoder_block_out_channels": (32, 64, 128)},
        "2.3": {"block_out_channels": (32, 64, 64, 64), "decoder_block_out_channels": (32, 64, 64, 128)},
    },
    "medium": {
        "2.0": {
            "latent_channels": 32,
            "block_out_channels": (64, 128, 128, 256),
            "decoder_block_out_channels": (64, 128, 256),
        },
        "2.3": {
            "latent_channels": 32,
            "block_out_channels": (64, 128, 128, 128),
            "decoder_block_out_channels": (64, 128, 128, 256),
        },
    },
    "full": {
        "2.0": {
            "latent_channels": 128,
            "block_out_channels": (256, 512, 1024, 2048),
            "layers_per_block": (4, 6, 6, 2, 2),
            "decoder_block_out_channels": (256, 512, 1024),
            "decoder_layers_per_block": (5, 5, 5, 5),
        },
        "2.3": {
            "latent_channels": 128,
            "block_out_channels": (256, 512, 1024, 1024),
            "layers_per_block": (4, 6, 4, 2, 2),
            "decoder_block_out_channels": (256, 512, 512, 1024),
            "decoder_layers_per_block": (4, 6, 4, 2, 2),
        },
    },
}
AUDIO: dict[str, dict[str, Any]] = {
    "tiny": {"base_channels": 32, "latent_channels": 8},
    "medium": {"base_channels": 64, "latent_channels": 8, "mel_bins": 32, "num_res_blocks": 2},
    "full": {"base_channels": 128, "latent_channels": 8, "mel_bins": 64, "num_res_blocks": 2, "resolution": 256},
}
_BLOCKS = {"resnet_kernel_sizes": [3, 7, 11], "resnet_dilations": [[1, 3, 5]] * 3}
_EXTENDED = _BLOCKS | {f"bwe_{name}": value for name, value in _BLOCKS.items()}
_EXTENDED |= {"in_channels": 128, "bwe_in_channels": 128, "num_mel_channels": 64}
VOCODER: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {"2.0": {"hidden_channels": 128}, "2.3": {"hidden_channels": 256, "bwe_hidden_channels": 128}},
    "medium": {
        "2.0": _BLOCKS | {"in_channels": 128, "hidden_channels": 256},
        "2.3": _EXTENDED | {"hidden_channels": 384, "bwe_hidden_channels": 128},
    },
    "full": {
        "2.0": _BLOCKS
        | {
            "in_channels": 128,
            "hidden_channels": 1024,
            "upsample_kernel_sizes": [16, 15, 8, 4, 4],
            "upsample_factors": [6, 5, 2, 2, 2],
        },
        "2.3": _EXTENDED
        | {
            "hidden_channels": 1536,
            "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
            "upsample_factors": [5, 2, 2, 2, 2, 2],
            "bwe_hidden_channels": 512,
            "bwe_upsample_kernel_sizes": [12, 11, 4, 4, 4],
            "bwe_upsample_factors": [6, 5, 2, 2, 2],
        },
    },
}
# Frames, rows and columns of a film's latents, and latents of its sound.
LENGTHS = {"tiny": (2, 2, 2, 6), "medium": (2, 3, 4, 9), "full": (3, 8, 12, 18)}

Made = tuple[str, Any, Any, Callable[[Any, Any, dict[str, Any]], Iterator[tuple[str, Call, Call]]]]


def parts(size: str) -> Iterator[Made]:
    """Each part's name, the peer's module and ours, and what is timed of them."""
    frames, rows, columns, sound = LENGTHS[size]
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator)

    def coded(z: torch.Tensor, x: torch.Tensor) -> Any:
        def calls(ours: Any, peer: Any, kind: dict[str, Any]) -> Iterator[tuple[str, Call, Call]]:
            latents, values = z.to(**kind), x.to(**kind)
            yield "decode", lambda: ours.decode(latents), lambda: peer.decode(latents, return_dict=False)[0]
            yield "encode", lambda: ours.encode(values).mode(), lambda: peer.encode(values).latent_dist.mode()

        return calls

    def spoken(ours: Any, peer: Any, kind: dict[str, Any]) -> Iterator[tuple[str, Call, Call]]:
        config = peer.config
        mel = noise(2, 4 * sound - 3, config.in_channels // 2).to(**kind)
        yield "waveform", lambda: ours(mel), lambda: peer(mel)

    for version in ("2.0", "2.3"):
        peer = ltx2_codec_peers.video_peer(version, **VIDEO.get(size, {}).get(version, {}))
        ours = ltx2_codec_peers.our_video(peer)
        pixels = ltx2_codec_peers.film(1, 8 * (frames - 1) + 1, 32 * rows, 32 * columns)
        yield f"video {version}", peer, ours, coded(noise(peer.config.latent_channels, frames, rows, columns), pixels)
    peer = ltx2_codec_peers.audio_peer(**AUDIO.get(size, {}))
    bins = peer.config.mel_bins
    latents = noise(peer.config.latent_channels, sound, bins // 4)
    yield "audio", peer, ltx2_codec_peers.our_audio(peer), coded(latents, noise(2, 4 * sound - 3, bins))
    for version in ("2.0", "2.3"):
        peer = ltx2_codec_peers.vocoder_peer(version, **VOCODER.get(size, {}).get(version, {}))
        yield f"vocoder {version}", peer, ltx2_codec_peers.our_vocoder(peer), spoken


if __name__ == "__main__":
    options = harness.arguments(__doc__, parts=("video", "audio", "vocoder"))
    print(harness.COLUMNS.format("", "ours ms", "peer ms", "ratio", "CPU ratio", "difference"))
    for size in options.sizes:
        for name, peer, ours, calls in parts(size):
            if name.split()[0] not in options.parts:
                continue
            for dtype in options.dtypes:
                kind = {"device": options.device, "dtype": harness.DTYPES[dtype]}
                for what, mine, theirs in calls(ours.to(**kind), peer.to(**kind), kind):
                    label = f"{name} {what}, {size}, {dtype}"
                    harness.compare(label, (mine, theirs), options.repetitions, options.device)
            del peer, ours, calls
            gc.collect()
