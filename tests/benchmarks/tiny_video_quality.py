"""How well the tiny video checkpoint films what a prompt says, on triples that it never saw in training.

    python tests/benchmarks/tiny_video_quality.py [--count 100] [--steps 20] [--guidance 3] [--sheet FILE.png]

Films held-out (object, motion, colour) triples and asks four questions of each film. Is the background, the median of
the outermost pixels, nearest to the colour that was asked for? Which motion, and which object is it: the data set's own
films of them are laid over that background, and ordered by their squared distance to the film. Which motion's sound is
nearest, by spectrum? Needs the Noto Color Emoji font (Debian: fonts-noto-color-emoji).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.run import run
from diffuse.tiny import data, video_data, video_sound

MOTIONS, OBJECTS, COLOURS = video_data.MOTIONS, video_data.OBJECTS, video_data.COLOURS
_SHEET_FRAMES = (0, 8, 16)


def background(film: Tensor) -> Tensor:
    """The median colour `[3]` of the outermost three pixels of all frames of `[3, F, H, W]`."""
    rim = torch.ones(film.shape[2:], dtype=torch.bool)
    rim[3:-3, 3:-3] = False
    return film[:, :, rim].flatten(1).median(dim=1).values


def distances(film: Tensor, glyphs: Tensor, motions: Tensor) -> Tensor:
    """Mean squared distances `[N]` of a film from those that the data set has of N objects with N motions."""
    colour = (background(film) + 1) * 127.5
    return (video_data.films(glyphs, motions, colour.expand(len(glyphs), 3)) - film).square().mean(dim=(1, 2, 3, 4))


def nearest_sound(sound: Tensor, rate: int) -> int:
    """The motion whose sound is nearest to `[2, S]`, by logarithms of mel spectra."""
    mel = video_sound.log_mel(sound)
    known = torch.stack([video_sound.log_mel(video_sound.sound(i, rate)) for i in range(len(MOTIONS))])
    frames = min(mel.shape[1], known.shape[2])
    return int((known[:, :, :frames] - mel[:, :frames]).abs().mean(dim=(1, 2, 3)).argmin())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--source", default=None, help="another checkpoint folder")
    parser.add_argument("--font", type=Path, default=data.FONT)
    parser.add_argument("--sheet", type=Path, default=None, help="write three frames of each film into one picture")
    args = parser.parse_args()

    glyphs, palette = video_data.glyphs(args.font), video_data.palette()
    triples = sorted(video_data.held_out())
    random.Random(0).shuffle(triples)
    overrides = ["model=tiny_video", f"num_inference_steps={args.steps}", f"guidance_scale={args.guidance}"]
    overrides += ["hardware=cpu", *([f"model.source={args.source}"] if args.source else [])]

    right = {"background": 0, "motion": 0, "object nearest": 0, "object in the first five": 0, "sound": 0}
    strips = []
    for seed, (i, j, k) in enumerate(triples[: args.count]):
        article = "an" if OBJECTS[i][0] in "aeiou" else "a"
        prompt = f"{article} {OBJECTS[i]} {MOTIONS[j]} on a {COLOURS[k]} background"
        cfg = compose_config([*overrides, f"seed={seed}", f"prompt={prompt}"])
        made = run.generate(cfg, draft_requests(cfg))[0]
        assert made.sound is not None and made.sample_rate is not None
        frames = made.frames[0]
        strips.append(np.concatenate([frames[place] for place in _SHEET_FRAMES], axis=1))
        film = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 127.5 - 1
        motions = distances(film, glyphs[i].expand(len(MOTIONS), -1, -1, -1), torch.arange(len(MOTIONS)))
        objects = distances(film, glyphs, torch.full((len(glyphs),), j))
        place = int((objects < objects[i]).sum())
        found = {
            "background": int((palette - (background(film) + 1) * 127.5).square().sum(dim=1).argmin()) == k,
            "motion": int(motions.argmin()) == j,
            "object nearest": place == 0,
            "object in the first five": place < 5,
            "sound": nearest_sound(torch.from_numpy(made.sound[0]), made.sample_rate) == j,
        }
        for question, yes in found.items():
            right[question] += yes
        wrong = [question for question, yes in found.items() if not yes]
        if wrong:
            print(f"  {prompt}: {', '.join(wrong)}; object in place {place + 1}", flush=True)
    for question, count in right.items():
        print(f"{question}: {count} of {len(strips)}")
    if args.sheet:
        columns = 8
        height, width = strips[0].shape[:2]
        sheet = np.zeros((-(-len(strips) // columns) * height, columns * (width + 4), 3), np.uint8)
        for n, strip in enumerate(strips):
            y, x = n // columns * height, n % columns * (width + 4)
            sheet[y : y + height, x : x + width] = strip
        Image.fromarray(sheet).save(args.sheet)


if __name__ == "__main__":
    main()
