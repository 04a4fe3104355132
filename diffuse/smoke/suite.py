"""Runs the cases, checks each picture and its record, and says how they went."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from diffuse.config import request as validation
from diffuse.errors import DiffuseError, RunError, one_line
from diffuse.media import files as media
from diffuse.media.pixels import pixels_sha256
from diffuse.record import record
from diffuse.run import model_auto
from diffuse.run.callbacks import Callbacks
from diffuse.run.generation import Generation
from diffuse.run.run import generate
from diffuse.schema import Config, GenerationRequest, ImageFormat
from diffuse.smoke import checkpoints, junit, reference
from diffuse.smoke.cases import SIDE, Case, cases
from diffuse.terminal import print_error, print_path, say

_OURS = ("output", "hardware", "memory_profile", "tracking")  # of the suite's configuration, in that of each case
_FLAT = 2.0  # levels; what a picture of nothing stays below


@dataclass
class Outcome:
    """How a case went. `wrong` is empty where everything is as it should be."""

    case: Case
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    said: str = ""  # what its pixels were compared with, and how they were


def run(cfg: DictConfig, overrides: Sequence[str], junit_file: Path | None = None) -> None:
    """Runs every case under the settings of `cfg`; paths go to standard output, a table to standard error.

    `overrides` are those that `cfg` was composed with.

    Raises:
        RunError: a case failed, or something about it is off.
        DiffuseError: nothing can be written where it should be.
    """
    media.check_output(Path(cfg.output.dir))
    with tempfile.TemporaryDirectory(prefix="diffuse-smoke-", ignore_cleanup_errors=True) as folder:
        inputs = write_inputs(Path(folder))
        outcomes = [_outcome(case, cfg, overrides, inputs) for case in cases()]
    _table(outcomes)
    if junit_file is not None:
        junit.write(junit_file, [junit.Test(o.case.name, o.seconds, o.wrong, o.said) for o in outcomes])
    if error := print_error():
        raise RunError(f"standard output cannot be written: {error.strerror}; the pictures are in {cfg.output.dir}")
    wrong = sum(bool(outcome.wrong) for outcome in outcomes)
    if wrong:
        raise RunError(f"{wrong} of {len(outcomes)} smoke cases are off, as the table says")
    say(f"all {len(outcomes)} smoke cases are as they should be: {sum(o.seconds for o in outcomes):.1f} s")


def write_inputs(folder: Path) -> dict[str, str]:
    """Writes the checkpoints, a picture to start from and its mask; gives their paths, by the names cases use."""
    paths = {kind: str(checkpoints.write(folder / kind, kind)) for kind in checkpoints.KINDS}
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    picture = np.stack([rows * 8, columns * 8, (rows * columns) % 256], axis=2).astype(np.uint8)
    mask = np.where(columns > SIDE // 3, 255, 0).astype(np.uint8)
    for name, pixels in (("picture", picture), ("mask", mask)):
        paths[name] = str(folder / f"{name}.png")
        Image.fromarray(pixels).save(paths[name])
    return paths


def _outcome(case: Case, cfg: DictConfig, overrides: Sequence[str], inputs: Mapping[str, str]) -> Outcome:
    outcome = Outcome(case)
    start = time.perf_counter()
    try:
        generation = make(case, cfg, overrides, inputs)
        outcome.wrong = [*picture_faults(generation, case), *record_faults(generation)]
        outcome.said, fault = reference.compare(case.slug, generation)
        outcome.wrong += [fault] if fault else []
    except DiffuseError as error:
        outcome.wrong = [str(error)]
    except Exception as error:  # the other cases are still worth running
        outcome.wrong = [one_line(f"{type(error).__name__}: {error}")]
    outcome.seconds = time.perf_counter() - start
    return outcome


def make(case: Case, cfg: DictConfig, overrides: Sequence[str], inputs: Mapping[str, str]) -> Generation:
    """Runs a case as the command runs a request."""
    own = [override.format_map(inputs) for override in case.overrides]
    composed = model_auto.compose_model(own)
    for name in _OURS:
        composed[name] = cfg[name]
    composed.output.name = case.slug
    given = [override for override in overrides if override.partition("=")[0] not in ("experiment", "suite")]
    callbacks = Callbacks(on_saved=print_path, messages=False)
    drafts = validation.drafts(composed)
    (generation,) = generate(composed, drafts, overrides=[*own, *given], save=True, callbacks=callbacks)
    return generation


def picture_faults(made: Generation, case: Case) -> list[str]:
    """What is wrong with the pictures of a run, and with their files."""
    request, faults = made.record["request"], []
    shape = request["num_images"], request["height"], request["width"], 3
    if made.frames[:, 0].shape != shape:
        faults.append(f"the pictures are {list(made.frames[:, 0].shape)} and should be {list(shape)}")
    if not bool(torch.isfinite(made.latents["image"]).all()):
        faults.append("its latents are not finite")
    if made.frames[:, 0].std() < _FLAT:
        faults.append("the pictures show nothing")
    if len(made.paths) != len(made.frames):
        faults.append(f"{len(made.paths)} of {len(made.frames)} files were written")
    for path, pixels, about in zip(made.paths, made.frames[:, 0], made.records, strict=False):
        with Image.open(path) as picture:
            there = np.asarray(picture.convert("RGB"))
        if there.shape != pixels.shape:
            faults.append(f"{path.name} is of another size than was made")
        elif path.suffix == f".{ImageFormat.png.value}" and pixels_sha256(there) != about["image"]["pixels_sha256"]:
            faults.append(f"{path.name} does not hold the pixels that its record speaks of")
        if media.read_record(path) != about:
            faults.append(f"the record in {path.name} is not that of the run")
    return faults


def record_faults(made: Generation) -> list[str]:
    """What a record should hold and this one does not."""
    about = made.record
    missing = [name for name, kind in record.PARTS.items() if not isinstance(about.get(name, ...), kind)]
    wanted = {"config": Config.__dataclass_fields__, "request": GenerationRequest.__dataclass_fields__}
    for part, names in wanted.items():
        missing += [f"{part}.{name}" for name in names if name not in about.get(part, {})]
    for dotted in ("weights.source", "weights.sha256", "hardware.device", "hardware.dtypes", "versions.torch"):
        part, _, name = dotted.partition(".")
        if not about.get(part, {}).get(name):
            missing.append(dotted)
    if len(about.get("images", [])) != len(made.frames):
        missing.append("images")
    return [f"the record has no {', '.join(missing)}"] if missing else []


def _table(outcomes: Sequence[Outcome]) -> None:
    width = max(len(outcome.case.name) for outcome in outcomes)
    print(f"{'case':<{width}}  seconds  result", file=sys.stderr)
    for outcome in outcomes:
        result = f"OFF: {'; '.join(outcome.wrong)}" if outcome.wrong else outcome.said
        print(f"{outcome.case.name:<{width}}  {outcome.seconds:7.2f}  {result}", file=sys.stderr, flush=True)
