"""How well the shipped tiny checkpoint draws what a prompt says, on pairs that it never saw in training.

    python tests/benchmarks/tiny_quality.py [--count 100] [--steps 20] [--guidance 3] [--storage fp8] [--sheet FILE.png]

Draws held-out (object, colour) pairs and asks two questions of each picture. Is the background, the median of the
outermost pixels, nearest to the colour that was asked for? And which object is it: the font's own rendering of every
object is laid over that background, and the objects are ranked by their squared distance to the picture. Needs the
Noto Color Emoji font (Debian: fonts-noto-color-emoji).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.run import run
from diffuse.tiny import data


def background(picture: np.ndarray) -> np.ndarray:
    """The median colour `[3]` of the outermost three pixels of `[H, W, 3]`."""
    rim = np.ones(picture.shape[:2], bool)
    rim[3:-3, 3:-3] = False
    return np.median(picture[rim], axis=0)


def rank(picture: np.ndarray, glyphs: np.ndarray, wanted: int) -> int:
    """The place, from 0, of object `wanted` among all objects ordered by distance to the picture."""
    colour = np.broadcast_to(background(picture), (len(glyphs), 3))
    distances = np.square(data.draw_on_colour(glyphs, colour) - picture).mean(axis=(1, 2, 3))
    return int((distances < distances[wanted]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--source", default=None, help="another checkpoint folder")
    parser.add_argument("--storage", default="full", help="how the weights are stored: full, fp8, int8 or nf4")
    parser.add_argument("--sheet", type=Path, default=None, help="write all pictures into one")
    args = parser.parse_args()

    names, colours = data.objects(), list(data.COLOURS)
    glyphs, palette = data.glyphs(names), np.array(list(data.COLOURS.values()), np.float32)
    pairs = sorted(data.held_out(len(names)))
    random.Random(0).shuffle(pairs)
    overrides = [f"num_inference_steps={args.steps}", f"guidance_scale={args.guidance}", "hardware=cpu"]
    overrides += [f"memory_profile.storage={args.storage}"]
    overrides += [f"model.source={args.source}"] if args.source else []

    pictures, ranks, right = [], [], 0
    for seed, (i, j) in enumerate(pairs[: args.count]):
        article = "an" if names[i][0] in "aeiou" else "a"
        prompt = f"prompt={article} {names[i]} on a {colours[j]} background"
        cfg = compose_config([*overrides, f"seed={seed}", prompt])
        picture = run.generate(cfg, draft_requests(cfg))[0].frames[0, 0].astype(np.float32)
        pictures.append(picture)
        right += int(np.square(palette - background(picture)).sum(axis=1).argmin()) == j
        ranks.append(rank(picture, glyphs, i))
        if ranks[-1]:
            print(f"  {prompt[7:]}: place {ranks[-1] + 1}")
    count = len(ranks)
    print(f"background right: {right} of {count}")
    print(f"object nearest: {sum(r == 0 for r in ranks)} of {count}; in the first five: {sum(r < 5 for r in ranks)}")
    if args.sheet:
        columns = 20
        sheet = np.zeros((-(-count // columns) * data.SIDE, columns * data.SIDE, 3), np.uint8)
        for k, picture in enumerate(pictures):
            y, x = k // columns * data.SIDE, k % columns * data.SIDE
            sheet[y : y + data.SIDE, x : x + data.SIDE] = picture
        Image.fromarray(sheet).save(args.sheet)


if __name__ == "__main__":
    main()
