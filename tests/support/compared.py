"""Pictures as a sweep leaves them, drawn and not generated: quick to make in any number; and their comparison."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from command import Done, diffuse

from diffuse.media.save import save_media

PROMPT = 'a rocket, it\'s "red" & <b>bold</b>'

_RATE = 16000  # samples of sound a second


def record(
    seed: int, steps: int, *, scheduler: str = "ddim", seconds: float | None = None, **fields: Any
) -> dict[str, Any]:
    """The record of a picture as far as it is looked at."""
    request = {"prompt": PROMPT, "seed": seed, "num_images": 1, "num_inference_steps": steps, "guidance_scale": 3.0}
    request |= {"width": 32, "height": 24} | {key: value for key, value in fields.items() if "." not in key}
    config: dict[str, Any] = {
        **request,
        "model": {"name": "tiny", "_target_": "x", "source": "here"},
        "scheduler": {"name": scheduler, "_target_": f"x.{scheduler}", "eta": None if scheduler == "euler" else 0.0},
        "hardware": {"name": "cpu", "dtype": "auto"},
        "output": {"dir": f"out/{seed}-{steps}", "name": None},
        "tracking": {"name": "none"},
    }
    for key, value in fields.items():
        if "." in key:
            group, _, option = key.partition(".")
            config[group] = {**config[group], option: value}
    typed = [f"prompt={request['prompt']}", f"seed={seed}", f"num_inference_steps={steps}", f"scheduler={scheduler}"]
    return {
        "diffuse": "0.1.0",
        "config": config,
        "overrides": [*typed, *(f"{key}={value}" for key, value in fields.items()), "output.dir=out", "tracking=none"],
        "request": request,
        "timings": {"load_s": 5.0, "total_s": 5.0 + (0.1 * steps if seconds is None else seconds)},
        "image": {"index": 0, "seed": seed, "pixels_sha256": "0" * 64},
    }


def pixels(seed: int, steps: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A picture of its seed, the nearer to what it is to be the more steps it was given."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    clean = np.stack([across, down, np.full_like(across, (seed * 37 % 100) / 100)], axis=-1)
    noise = np.random.default_rng(seed).normal(size=clean.shape) / steps
    return (np.clip(clean + noise, 0, 1) * 255).astype(np.uint8)


def save(folder: Path, seed: int, steps: int, *, format: str = "png", name: str | None = None, **fields: Any) -> Path:
    """A picture with its record inside."""
    about = record(seed, steps, **fields)
    drawn = pixels(seed, steps, about["request"]["height"], about["request"]["width"])
    return save_media(drawn[None], folder, name or f"seed{seed}_steps{steps}", format=format, record=about)


def sweep(folder: Path, seeds: int = 3, steps: tuple[int, ...] = (4, 8, 16), **fields: Any) -> list[Path]:
    """Every combination, each in a folder of its own."""
    return [save(folder / f"{seed}-{count}", seed, count, **fields) for seed in range(seeds) for count in steps]


def job(folder: Path, file: Path | None, about: dict[str, Any], **said: Any) -> None:
    """A `job.json` beside a picture, or of a job that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [about["image"]]
    whole = {
        "version": 1,
        "overrides": about["overrides"],
        "status": "done" if file else "failed",
        "error": None if file else "RunError: the disk is full",
        "media": [{"file": file.name, "pixels_sha256": images[0]["pixels_sha256"]}] if file else [],
        "run_id": None,
        "record": {**{key: value for key, value in about.items() if key != "image"}, "images": images},
    }
    (folder / "job.json").write_text(json.dumps(whole | said), encoding="utf-8")


def film(steps: int, folder: Path, format: str) -> Path:
    """A grey that brightens, and a tone: nearer to what it is to be the more steps it was given. A job of its own."""
    noise = np.random.default_rng(steps).normal(size=(8, 32, 48, 3)) * 60 / steps
    levels = np.linspace(60, 180, 8)[:, None, None, None]
    wave = np.sin(2 * np.pi * 440 * np.arange(_RATE) / _RATE)
    sound = np.stack([wave * 0.5, wave * 0.5 + 1 / steps * 0.1]).astype(np.float32)
    about = record(1, steps)
    about["image"] |= {"fps": 8.0}
    frames = np.clip(levels + noise, 0, 255).astype(np.uint8)
    path = save_media(
        frames, folder, "film", format=format, record=about, fps=8, sound=sound, sample_rate=_RATE, quality=90
    )
    job(folder, path, about)
    return path


def compare(*arguments: Any, cwd: Path) -> Done:
    return diffuse("compare", *arguments, cwd=cwd)


def refused(*arguments: Any, cwd: Path) -> str:
    """The one line that refuses it; nothing is left behind."""
    before = sorted(cwd.rglob("*"))
    done = compare(*arguments, cwd=cwd)
    assert (done.status, done.out) == (2, ""), done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(cwd.rglob("*")) == before
    return done.err


def read_table(report: Path) -> list[dict[str, str]]:
    with open(report / "table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
