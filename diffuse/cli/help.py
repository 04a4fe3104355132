"""Writes the text of `diffuse --help`. Nothing is imported for it, so that it is there at once."""

from __future__ import annotations

import textwrap
from pathlib import Path

from diffuse.cli.help_fields import FIELDS

_HELP = """\
diffuse makes pictures with diffusion models from declared configuration, and keeps the record.

  diffuse [OVERRIDES]             make what is configured ("diffuse generate" is the same)
  diffuse -m [OVERRIDES]          sweep over lists and ranges of values; the same command goes on where it stopped
  diffuse plan [OVERRIDES]        what it would take: memory, arithmetic, time, disk; with -m of a whole sweep; --json,
                                  --card "RTX 4090"
  diffuse compare RUN...          contact sheets, table, plots and one page of what is named
  diffuse convert SRC DST         write a checkpoint as a folder, or as one file DST.safetensors
  diffuse download [OVERRIDES]    fetch a model's files, after saying how much that is; --yes agrees beforehand
  diffuse encode [OVERRIDES] --out FILE
                                  write the embeddings of a film's prompts, for text_backend=precomputed
  diffuse serve-text [OVERRIDES]  encode prompts for other machines, for text_backend=api; --host, --port and limits
  diffuse reproduce RUN_ID|FILE   make the pictures of a run or file again, and say whether they are the same
  diffuse experiment=smoke [--junit FILE]
                                  run and check every family of pipelines and every scheduler at its tiniest
  diffuse doctor [OVERRIDES]      hardware, libraries, the profile that each model would get, the tracking store;
                                  --measure also how fast the device is, for plan
  diffuse ui [OVERRIDES]          open the MLflow store on loopback and print the link that shows the pictures
  diffuse sync [OVERRIDES]        deliver the runs that wait because the store was away or a process was killed

An override is NAME=VALUE. A prompt is taken literally.

  diffuse prompt="a panda face on a pink background" seed=7 num_images=4
  diffuse model=sd21 prompt="a lighthouse, oil on canvas" num_inference_steps=30
  diffuse -m seed=1,2,3 guidance_scale=2,4
  diffuse -m seed='range(0,100)' hydra/launcher=joblib     or ray, submitit_slurm: on many processes or machines

Fields (what is not given takes the model's default):
{fields}
  prompt_file                     prompts from a file, one a line
  model.source, model.vae.source  a folder or file, or OWNER/NAME on the hub; likewise each component, and the refiner's
  lora=FILE:0.8                   files that change the model's weights, and how much of each; [FILE:0.8,FILE]: several
  embedding=FILE                  files of textual inversion, whose words may then be in the prompt
  model.download                  ask, yes or never: whether weights that are not here are fetched
  output.dir, output.name         where to; an existing file is never overwritten
  objective.metric                what a sweep by Optuna makes better: quality/psnr, time/denoise_s ...
  objective.reference             the picture, or the film, that quality/psnr compares with
  output.format                   png, jpg, webp or tiff; of films mp4, webm, gif, webp, avif, frames or wav
  output.quality                  1-100, of formats that lose something
  report.make, report.sheets      false leaves out a sweep's report, or its contact sheets

Groups:
{groups}

diffuse COMMAND --help lists the options of a command.

  --config-dir DIR, --config-name NAME
                your own YAML files beside the package's, and a configuration of your own to begin with
  --cfg job     print the configuration and make nothing
  --dry-run     say what would be made, and of a sweep what is there already
  --hydra-help  what of Hydra's own options and settings works here; --shell-completion among them
  --version     print the version
  --help        this text

Standard output carries the saved paths, one a line. Exit status: 0 done, 2 the request is wrong, 1 the run failed.
"""

_NOTES = {
    "model": "model.source=FOLDER, FILE or OWNER/NAME, which auto reads",
    "refiner": "makes the last steps; denoising_end=0-1 says from when on",
    "scheduler": "its options too, such as scheduler.eta=0.5",
    "memory_profile": "what may be on the device when; .budget_gib=6, .storage=int8",
    "hardware": "hardware.dtype, .deterministic=strict, .compile=regional",
    "text_backend": "who encodes the prompts of films",
    "tracking": "tracking.uri=SERVER",
    "experiment": "ready-made configurations",
}


def help_text() -> str:
    """Returns the commands, the fields, and the groups with their options."""
    return _HELP.format(fields=FIELDS.rstrip(), groups=_groups()).rstrip("\n")


def _groups() -> str:
    """Returns an entry for each group of the configuration, with the names of its options."""
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
