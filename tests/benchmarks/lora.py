"""Puts a LoRA file on an SDXL-like U-Net, against `load_lora_weights` and `fuse_lora` of diffusers, which need peft.

    python tests/benchmarks/lora.py
    python tests/benchmarks/lora.py --threads 2 --channels 320 640 1280 --repetitions 3      SDXL's own width; 25 GB

Both read the same file, from its path to changed weights that are in place, in one process and in turn. After each
timing the file is taken off again, which is not timed. A ratio is the median of the paired ratios, of time, and of
processor time, which is what remains true on a machine that others use too. The last number is how far the changed
weights are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.lora.locate_lora import open_loras
from diffuse.checkpoints.weights import load_weights
from diffuse.device.hardware import Hardware
from diffuse.device.memory import Memory
from diffuse.models.unet import unet2d_condition
from diffuse.pipelines.components import read_configs
from diffuse.pipelines.latent_diffusion import UNET
from diffuse.pipelines.lora import LoraFitter
from diffuse.schema import MemoryProfileConfig

RANK = 16


def make(folder: Path, channels: list[int]) -> Path:
    """A checkpoint that holds a U-Net alone, of SDXL's depths, and a LoRA of all its transformers, by kohya's names."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=128,
        layers_per_block=2,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        attention_head_dim=tuple(width // 64 for width in channels),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    unet.save_pretrained(folder / "unet", max_shard_size="20GB")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    entries = {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and "transformer_blocks" in name:
            base = f"lora_unet_{name.replace('.', '_')}"
            entries[f"{base}.lora_down.weight"] = torch.randn(RANK, module.in_features).half() / 100
            entries[f"{base}.lora_up.weight"] = torch.randn(module.out_features, RANK).half() / 100
            entries[f"{base}.alpha"] = torch.tensor(RANK / 2)
    save_file(entries, folder / "style.safetensors")
    return folder


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--channels", type=int, nargs=3, default=[128, 256, 512])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as root:
        folder = make(Path(root), options.channels)
        file = folder / "style.safetensors"
        checkpoint = CheckpointFolder.open(folder)
        components = {"unet": UNET}
        config = read_configs(components, checkpoint)["unet"]

        def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
            build = lambda: unet2d_condition.UNet2DConditionModel(config)  # noqa: E731
            return load_weights(build, checkpoint, "unet", device=device, dtype=dtype, rename=UNET.rename)

        memory = Memory(MemoryProfileConfig(name="all", on_device=["*"]), Hardware("cpu"))
        memory.add("unet", load)

        def ours() -> None:
            loras = open_loras({"lora": f"{file}:0.8", "model": {"name": "sdxl", "download": "never"}})
            memory.set_patches(LoraFitter(components, checkpoint).patches(loras))
            with memory.use("unet"):
                pass

        def take_off() -> None:
            memory.set_patches({})
            with memory.use("unet"):
                pass

        peer = UNet2DConditionModel.from_pretrained(folder / "unet")
        original = {key: value.clone() for key, value in peer.state_dict().items()}
        pipeline = StableDiffusionXLPipeline(None, None, None, None, None, peer, None, add_watermarker=False)

        def theirs() -> None:
            pipeline.load_lora_weights(str(file))
            pipeline.fuse_lora(components=["unet"], lora_scale=0.8)

        def restore() -> None:
            pipeline.unload_lora_weights()
            peer.load_state_dict(original)

        take_off()
        ratios: list[tuple[float, float]] = []
        apart = 0.0
        for turn in range(options.repetitions + 1):
            pairs = [("ours", ours), ("theirs", theirs)]
            seconds = {name: timed(action) for name, action in (pairs if turn % 2 else pairs[::-1])}
            if turn == 0:
                with memory.use("unet") as unet:
                    mine = unet.state_dict()
                fused = {key.replace(".base_layer", ""): value for key, value in peer.state_dict().items()}
                apart = max(float((mine[key] - fused[key]).abs().max()) for key in mine)
            else:
                ratios.append((seconds["ours"][0] / seconds["theirs"][0], seconds["ours"][1] / seconds["theirs"][1]))
                print("; ".join(f"{name} {wall:.2f} s ({cpu:.2f} s)" for name, (wall, cpu) in seconds.items()))
            take_off()
            restore()
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        parameters = sum(value.numel() for value in original.values()) / 1e6
        print(f"{parameters:.0f} M parameters: ratio {wall:.2f}, of processor time {cpu:.2f}; apart {apart:.1e}")


if __name__ == "__main__":
    main()
