"""What `diffuse --help` says. Nothing is imported for it."""

from __future__ import annotations

import textwrap
from pathlib import Path

_HELP = """\
diffuse makes pictures with diffusion models from declared configuration, and keeps the record.

  diffuse [OVERRIDES]             make what is configured ("diffuse generate" is the same)
  diffuse -m [OVERRIDES]          sweep over lists and ranges of values; the same command goes on where it stopped
  diffuse compare RUN...          contact sheets, table, plots and one page of what is named, see below
  diffuse download [OVERRIDES]    fetch a model's files, after saying how much that is; --yes agrees beforehand
  diffuse reproduce RUN_ID|FILE   make the pictures of a run or file again, and say whether they are the same
  diffuse experiment=smoke [--junit FILE]
                                  run and check every family of pipelines and every scheduler at its tiniest
  diffuse doctor [OVERRIDES]      hardware, libraries, the profile that each model would get, the tracking store
  diffuse ui [OVERRIDES]          open the MLflow store on loopback and print the link that shows the pictures
  diffuse sync [OVERRIDES]        deliver the runs that wait because the store was away or a process was killed

An override is NAME=VALUE. A prompt is taken literally.

  diffuse prompt="a panda face on a pink background" seed=7 num_images=4
  diffuse model=sd21 prompt="a lighthouse, oil on canvas" num_inference_steps=30
  diffuse -m seed=1,2,3 guidance_scale=2,4
  diffuse -m seed='range(0,100)' hydra/launcher=joblib     or ray, submitit_slurm: on many processes or machines

Fields (what is not given takes the model's default):
  prompt, negative_prompt         what the picture shows, and what it does not
  prompt_2, negative_prompt_2     for the second text encoder of SDXL; the first one's where not given
  long_prompt                     whether a prompt beyond 77 tokens is cut, or read in chunks of 75: chunk
  prompt_syntax                   plain or weighted: (word:1.3) weighs 1.3, (word) 1.1, [word] 1 / 1.1
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
  model.source, model.vae.source  a folder, or OWNER/NAME on the hub; likewise each component, and the refiner's
  model.download                  ask, yes or never: whether weights that are not here are fetched
  output.dir, output.name         where to; an existing file is never overwritten
  objective.metric                what a sweep by Optuna makes better: quality/psnr, time/denoise_s ...
  objective.reference             the picture that quality/psnr compares with
  output.format, output.quality   png, jpg, webp or tiff; 1-100 for jpg and webp
  report.make, report.sheets      false leaves out a sweep's report, or its contact sheets

Groups:
{groups}

Comparing: RUN is a folder, a file, the id of a run, a sweep or an experiment; several may be named.
  --out DIR                       where to; a folder's own report/ where it is the only one
  --x, --y, --z FIELD             what lies on the columns, the rows and the sheets, of what varies
  --reference FIELD=VALUE         what quality is measured against, also a file or a run; else the most steps
  --no-sheets                     leave the contact sheets out

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
    "hardware": "hardware.dtype, .deterministic=strict, .compile=regional",
    "tracking": "tracking.uri=SERVER",
    "experiment": "ready-made configurations",
}


def text() -> str:
    """Commands, fields, and the groups with what they can be."""
    return _HELP.format(groups=_groups()).rstrip("\n")


def _groups() -> str:
    # Read from the folder itself: Hydra is not needed to list file names.
    package = Path(__file__).resolve().parents[1]
    conf = package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
    lines = []
    for group, note in _NOTES.items():
        names = "| ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
        wrapped = textwrap.wrap(f"{group}={names}", 56, subsequent_indent=" " * (len(group) + 1))
        first, *more = (line.replace("| ", "|") for line in wrapped)
        lines += [f"  {line}" for line in (f"{first:<52}  {note}", *more)]
    return "\n".join(lines)
