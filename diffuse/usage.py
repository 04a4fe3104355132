"""What `diffuse --help` says. Nothing is imported for it."""

from __future__ import annotations

import textwrap
from pathlib import Path

_HELP = """\
diffuse makes pictures with diffusion models from declared configuration, and keeps the record.

  diffuse [OVERRIDES]             make what is configured ("diffuse generate" is the same)
  diffuse -m [OVERRIDES]          sweep over lists and ranges of values
  diffuse download [OVERRIDES]    fetch a model's files, after saying how much that is; --yes agrees beforehand
  diffuse doctor [OVERRIDES]      hardware, libraries, the profile that each model would get, the tracking store
  diffuse ui [OVERRIDES]          open the MLflow store on loopback and print the link that shows the pictures

An override is NAME=VALUE. A prompt is taken literally.

  diffuse prompt="a panda face on a pink background" seed=7 num_images=4
  diffuse model=sd21 prompt="a lighthouse, oil on canvas" num_inference_steps=30
  diffuse -m seed=1,2,3 guidance_scale=2,4

Fields (what is not given takes the model's default):
  prompt, negative_prompt         what the picture shows, and what it does not
  prompt_2, negative_prompt_2     for the second text encoder of SDXL; the first one's where not given
  prompt_file                     prompts from a file, one a line
  seed, num_images                image i uses seed + i; a seed is drawn where none is given
  width, height                   in pixels
  original_width, original_height, crop_left, crop_top, target_width, target_height
                                  what SDXL is told of the picture: its size before, where it was cropped, and after
  num_inference_steps             more are slower and finer
  timesteps                       those to visit, such as [999,749,499,249]
  guidance_scale                  how closely to follow the prompt; 0 and 1 switch guidance off
  guidance_rescale                0-1: back towards the contrast of a picture without guidance
  input_image, strength           a picture to start from, and above 0 up to 1 how far it may change
  mask_image, keep_unmasked       white is painted anew; true returns the pixels outside unchanged
  resize                          stretch, crop or pad: how a picture of another size is made to fit
  output.dir, output.name         where to; an existing file is never overwritten
  output.format, output.quality   png, jpg or webp; 1-100 for the latter two

Groups:
{groups}

  --cfg job     print the configuration and make nothing
  --version     print the version
  --help        this text

Standard output carries the saved paths, one a line. Exit status: 0 done, 2 the request is wrong, 1 the run failed.
"""

_NOTES = {
    "model": "model.source=FOLDER or OWNER/NAME, which auto reads",
    "refiner": "makes the last steps; denoising_end=0-1 says from when on",
    "scheduler": "its options too, such as scheduler.eta=0.5",
    "memory_profile": "what may be on the device when",
    "hardware": "hardware.dtype, hardware.deterministic=strict, hardware.compile",
    "tracking": "tracking.uri=SERVER",
    "experiment": "ready-made configurations",
}


def text() -> str:
    """Commands, fields, and the groups with what they can be."""
    return _HELP.format(groups=_groups()).rstrip("\n")


def _groups() -> str:
    # Read from the folder itself: Hydra is not needed to list file names.
    package = Path(__file__).resolve().parent
    conf = package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
    lines = []
    for group, note in _NOTES.items():
        names = "| ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
        wrapped = textwrap.wrap(f"{group}={names}", 56, subsequent_indent=" " * (len(group) + 1))
        first, *more = (line.replace("| ", "|") for line in wrapped)
        lines += [f"  {line}" for line in (f"{first:<52}  {note}", *more)]
    return "\n".join(lines)
