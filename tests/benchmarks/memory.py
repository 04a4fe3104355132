"""Predicted memory beside the measured: a grid of families, sizes, batches and profiles, on the CPU.

    python tests/benchmarks/memory.py [--family sd sdxl ...] [--profile full_gpu ...] [--limit N]

Each case runs in a process of its own, with random weights. `live` is the peak of the bytes of tensors that are alive,
read from real storages while the pipeline runs; `rss` is the peak of the process's memory. Both are shown in MiB, and
as predicted / measured; the prediction of `rss` is the process's own memory before the run, and the predicted bytes.
`device` is the share of `live` that the profile has on the device, which on a CPU is a part of the same memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import diffuse
from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.weights import skeleton
from diffuse.config.compose import compose_config
from diffuse.config.groups import load_group
from diffuse.config.request import draft_requests
from diffuse.pipelines.families import load_family

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
MIB = 1 << 20
DATA = Path(__file__).parents[1] / "data"
TINY = Path(diffuse.__file__).parent / "tiny" / "checkpoint"
PROFILES = ("full_gpu", "balanced", "unet_gpu", "cpu_only", "streaming")
LEVERS = {"streaming": ["memory_profile.resident_blocks=6"], "balanced": ["memory_profile.tiled_decode=true"]}
SIZES = {"tiny": (64, 128, 256), "sd": (128, 256), "sdxl": (128, 256), "inpaint": (256,), "refined": (256,)}

_NARROW = {"block_out_channels": (96, 192, 384, 384), "attention_head_dim": (3, 6, 12, 12), "cross_attention_dim": 256}
_NARROW_XL = {
    "block_out_channels": (96, 192, 384),
    "attention_head_dim": (3, 6, 12),
    "transformer_layers_per_block": (1, 2, 4),
    "cross_attention_dim": 512,
    "addition_time_embed_dim": 64,
    "projection_class_embeddings_input_dim": 256 + 6 * 64,
}
_TEXT = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "projection_dim": 256,
}
_VAE = {"block_out_channels": (64, 128, 128, 128)}


def configs(family: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The class of a family's pipeline, and the settings of its components: published ones, but narrow."""
    sd, sdxl = (json.loads((DATA / f"{name}_configs.json").read_text()) for name in ("sd21", "sdxl"))
    if family in ("sd", "inpaint"):
        channels = {"in_channels": 9} if family == "inpaint" else {}
        unet = {**sd["unet"], **_NARROW, **channels}
        return "StableDiffusionPipeline", {
            "unet": unet,
            "vae": {**sd["vae"], **_VAE},
            "text_encoder": {**sd["text_encoder"], **_TEXT},
        }
    parts = {"unet": {**sdxl["unet"], **_NARROW_XL}, "vae": {**sdxl["vae"], **_VAE}}
    if family == "refiner":
        narrow = {"cross_attention_dim": 256, "projection_class_embeddings_input_dim": 256 + 5 * 64}
        parts["unet"] |= narrow
        return "StableDiffusionXLImg2ImgPipeline", {
            **parts,
            "text_encoder_2": {**sdxl["text_encoder_2"], **_TEXT},
        }
    return "StableDiffusionXLPipeline", {
        **parts,
        "text_encoder": {**sdxl["text_encoder"], **_TEXT},
        "text_encoder_2": {**sdxl["text_encoder_2"], **_TEXT},
    }


def make(folder: Path, family: str, target: str) -> Path:
    """A checkpoint of random weights in float32."""
    name, parts = configs(family)
    pipeline = load_family(target)
    for component, config in parts.items():
        entry = pipeline.components[component]
        assert entry.module is not None and entry.config is not None
        module, settings = entry.module, read_architecture(entry.config, config, component)
        shapes = skeleton(lambda module=module, settings=settings: module(settings)).state_dict()  # type: ignore[misc]
        generator = torch.Generator().manual_seed(0)
        tensors = {key: torch.randn(x.shape, generator=generator) * 0.02 for key, x in shapes.items()}
        path = folder / component
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        file = "model" if component.startswith("text") else "diffusion_pytorch_model"
        save_file(tensors, path / f"{file}.safetensors")
    index: dict[str, Any] = {"_class_name": name, "requires_aesthetics_score": family == "refiner"}
    for component in [*parts, "scheduler"]:
        index[component] = ["diffusers", "any"]
    for tokenizer in [each for each in pipeline.components if each.startswith("tokenizer")]:
        shutil.copytree(TINY / "tokenizer", folder / tokenizer)
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    shutil.copytree(TINY / "scheduler", folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@cache
def warm_up() -> None:
    """Makes a first picture, for which libraries load some 35 MiB of code."""
    from real_bytes import RealBytes

    from diffuse.run.open import close_pipeline
    from diffuse.run.prepare import prepare
    from diffuse.run.run import compute as run

    cfg = compose_config(["hardware=cpu", "tracking=none", "prompt=a cactus", "seed=1", "num_inference_steps=1"])
    first = prepare(cfg, draft_requests(cfg)[0])
    with RealBytes():  # whose base class imports more of PyTorch
        run([first])
    close_pipeline(first.opened.pipeline)


def compute(overrides: list[str]) -> dict[str, float]:
    """Makes the pictures of one case in this process. Returns bytes."""
    from real_bytes import RealBytes

    from diffuse.device.allocator import reset_rss_peak, rss_peak
    from diffuse.run.open import close_pipeline
    from diffuse.run.prepare import prepare
    from diffuse.run.run import compute as run

    warm_up()
    cfg = compose_config(overrides)
    prepared = prepare(cfg, draft_requests(cfg)[0])
    gc.collect()
    if hasattr(trim := ctypes.CDLL(None), "malloc_trim"):
        trim.malloc_trim(0)
    reset_rss_peak()
    before = rss_peak()
    with RealBytes() as mode:
        run([prepared])
    close_pipeline(prepared.opened.pipeline)
    return {"live": mode.peak, "base": before, "rss": rss_peak()}


def compute_apart(label: str, overrides: list[str]) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(overrides)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{label}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def predicted(overrides: list[str]) -> Any:
    """The prediction of one case."""
    from diffuse.plan.predict import predict
    from diffuse.run.prepare import prepare

    cfg = compose_config(overrides)
    prepared = prepare(cfg, draft_requests(cfg)[0])
    opened = prepared.opened
    return predict(cfg, prepared.request, opened.profile, hw=opened.hardware, checkpoints=opened.checkpoints)


def cases(families: list[str], profiles: list[str], folder: Path) -> list[tuple[str, list[str]]]:
    """Labels, and the overrides of each case."""
    chosen = []
    for family in families:
        model = {"refined": "sdxl", "inpaint": "sd", "tiny": None}.get(family, family)
        source = [] if model is None else [f"model={'sd21' if model == 'sd' else model}"]
        source += [] if model is None else [f"model.source={folder / ('inpaint' if family == 'inpaint' else model)}"]
        if family == "refined":
            source += ["refiner=sdxl", f"refiner.source={folder / 'refiner'}"]
        if family == "inpaint":
            source += [f"input_image={folder / 'image.png'}", f"mask_image={folder / 'mask.png'}"]
        for side, profile, count in itertools.product(SIZES[family], profiles, (1, 2)):
            if count == 2 and side != SIZES[family][0]:
                continue
            levers = [[], LEVERS[profile]] if profile in LEVERS and side == SIZES[family][-1] else [[]]
            for lever in levers:
                note = " ".join(each.partition(".")[2] for each in lever)
                words = [f"memory_profile={profile}", f"width={side}", f"height={side}", f"num_images={count}"]
                words += [
                    "hardware=cpu",
                    "hardware.threads=1",
                    "tracking=none",
                    "seed=1",
                    "prompt=a cactus",
                    "memory_profile.max_side=null",
                ]
                words += ["num_inference_steps=2", *source, *lever]
                chosen.append((f"{family:8} {side:4} x{count} {profile:10} {note}", words))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--profile", nargs="+", default=list(PROFILES), choices=list(load_group("memory_profile")))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--case", help=argparse.SUPPRESS)  # measure this one here, and print JSON
    parser.add_argument("--live-only", action="store_true", help="all cases in this process; rss then says nothing")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(compute(json.loads(args.case))))
        return
    ratios: dict[str, list[float]] = {"live": [], "rss": []}
    print(f"{'case':58} {'live':>8} {'ratio':>6} {'device':>8} {'rss':>8} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets = {group: model._target_ for group, model in load_group("model").items()}
        for family, model in {"sd": "sd21", "inpaint": "sd21", "sdxl": "sdxl", "refiner": "sdxl_refiner"}.items():
            make(folder / family, family, targets[model])
        from PIL import Image

        Image.new("RGB", (256, 256), "pink").save(folder / "image.png")
        Image.new("L", (256, 256), 255).save(folder / "mask.png")
        for label, overrides in cases(args.family, args.profile, folder)[: args.limit]:
            found = compute(overrides) if args.live_only else compute_apart(label, overrides)
            guess = predicted(overrides)
            live, rss = guess.host_bytes / found["live"], (found["base"] + guess.host_bytes) / found["rss"]
            ratios["live"].append(live)
            ratios["rss"].append(rss)
            print(
                f"{label:58} {found['live'] / MIB:8.1f} {live:6.3f} {guess.device_bytes / MIB:8.1f} "
                f"{found['rss'] / MIB:8.1f} {rss:6.3f}",
                flush=True,
            )
    for kind, values in ratios.items():
        off = sorted(abs(value - 1) for value in values)
        good = sum(each <= 0.1 for each in off)
        median = f"{statistics.median(off):.1%}"
        print(f"{kind}: {good} of {len(off)} within 10%, median off by {median}, at most {off[-1]:.1%}")


if __name__ == "__main__":
    main()
