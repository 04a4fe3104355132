"""Predicted memory beside the measured: a grid of families, sizes, batches and profiles, on the CPU.

    python tests/benchmarks/memory.py [--family sd sdxl ...] [--profile full_gpu ...] [--limit N]

Each case runs in a process of its own, with random weights. `live` is the peak of the bytes of tensors that are alive,
read from real storages while the pipeline runs; `rss` is the peak of the process's memory. Both are shown in MiB, and
as predicted / measured; the prediction of `rss` is the process's own memory before the run, and the predicted bytes.
`device` is what the profile has on the device, which on a CPU is a part of the same memory. It is measured where all
components are on the device, in a second picture, for which the process holds what the first left.
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
LEVERS = {  # that are pulled in a case of their own
    "streaming": ["memory_profile.resident_blocks=6"],
    "balanced": ["memory_profile.tiled_decode=true", "memory_profile.vae_tile_size=8"],
    "full_gpu": [
        *(f"memory_profile.tiled_{way}=true" for way in ("decode", "encode")),
        "memory_profile.vae_tile_size=8",
    ],
}
# With a budget of main memory freed memory goes back to the system at once. Without one the C library keeps up to
# 128 MiB of it, in gaps between blocks of less than 32 MiB, of which the small models consist.
KEPT = ["memory_profile.host_gib=6"]
LARGE = {"tiny": 256, "sd": 256, "sdxl": 192, "inpaint": 192, "refined": 192}  # pixels a side; `SMALL` is the other
SMALL = 128

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
    from device_bytes import DeviceBytes
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
    found = {"live": mode.peak, "device": 0, "base": before, "rss": rss_peak()}
    memory = prepared.opened.pipeline.memory
    if DeviceBytes.has_all(memory):
        with DeviceBytes(memory) as second:
            run([prepared])
        found["device"] = second.device_peak
    close_pipeline(prepared.opened.pipeline)
    return found


def compute_apart(label: str, overrides: list[str]) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(overrides)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{label}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def predicted(overrides: list[str], *, repeated: bool = False) -> Any:
    """The prediction of one case, or of a second picture."""
    from diffuse.plan.predict import predict
    from diffuse.run.prepare import prepare

    cfg = compose_config(overrides)
    prepared = prepare(cfg, draft_requests(cfg)[0])
    opened = prepared.opened
    there = {"hw": opened.hardware, "checkpoints": opened.checkpoints}
    return predict(cfg, prepared.request, opened.profile, **there, repeated=repeated)


def cases(families: list[str], profiles: list[str], folder: Path) -> list[tuple[str, list[str]]]:
    """Labels, and the overrides of each case."""
    chosen = []
    for family in families:
        model = {"refined": "sdxl", "inpaint": "sd", "tiny": None}.get(family, family)
        source = [] if model is None else [f"model={'sd21' if model == 'sd' else model}"]
        source += [] if model is None else [f"model.source={folder / ('inpaint' if family == 'inpaint' else model)}"]
        if family == "refined":
            source += ["refiner=sdxl", f"refiner.source={folder / 'refiner'}", "denoising_end=0.5"]
        if family == "inpaint":
            source += [f"input_image={folder / 'image.png'}", f"mask_image={folder / 'mask.png'}"]
        shapes = [(SMALL, 1, False), (LARGE[family], 1, False), (LARGE[family], 1, True), (SMALL, 2, False)]
        for profile, (side, count, pulled) in itertools.product(profiles, shapes):
            lever = LEVERS.get(profile, []) if pulled else []
            if (pulled and not lever) or (side == SMALL and profile != "full_gpu"):
                continue
            if profile == "balanced" and not pulled:
                continue
            note = " ".join(each.partition(".")[2] for each in lever)
            words = [f"memory_profile={profile}", f"width={side}", f"height={side}", f"num_images={count}"]
            words += ["hardware=cpu", "hardware.threads=1", "tracking=none", "seed=1", "prompt=a cactus"]
            words += ["memory_profile.max_side=null", "num_inference_steps=2", *KEPT, *source, *lever]
            chosen.append((f"{family:8} {side:4} x{count} {profile:10} {note}", words))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=list(LARGE), choices=list(LARGE))
    parser.add_argument("--profile", nargs="+", default=list(PROFILES), choices=list(load_group("memory_profile")))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--case", help=argparse.SUPPRESS)  # measure this one here, and print JSON
    parser.add_argument("--live-only", action="store_true", help="all cases in this process; rss then says nothing")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(compute(json.loads(args.case))))
        return
    ratios: dict[str, list[float]] = {"live": [], "device": [], "rss": []}
    print(f"{'case':70} {'live':>8} {'ratio':>6} {'device':>8} {'ratio':>6} {'rss':>8} {'ratio':>6}")
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
            ratio = {"live": guess.host_bytes / found["live"]}
            if found["device"]:
                ratio["device"] = predicted(overrides, repeated=True).device_bytes / found["device"]
            if not args.live_only:
                ratio["rss"] = (found["base"] + guess.host_bytes) / found["rss"]
            shown = []
            for kind in ratios:
                if kind in ratio:
                    ratios[kind].append(ratio[kind])
                shown.append(f"{found[kind] / MIB:8.1f} {ratio[kind]:6.3f}" if kind in ratio else " " * 15)
            print(f"{label:70} {' '.join(shown)}", flush=True)
    for kind, values in ratios.items():
        if not values:
            continue
        off = sorted(abs(value - 1) for value in values)
        good = sum(each <= 0.1 for each in off)
        median = f"{statistics.median(off):.1%}"
        print(f"{kind}: {good} of {len(off)} within 10%, median off by {median}, at most {off[-1]:.1%}")


if __name__ == "__main__":
    main()
