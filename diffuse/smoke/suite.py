"""The suite of a smoke run: every case is run, its picture and record are checked, and a table shows the results."""

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

from diffuse.config.request import draft_requests
from diffuse.config.root import Config
from diffuse.errors import DiffuseError, RunError, one_line
from diffuse.media.files import check_output
from diffuse.media.formats import is_lossless, is_still, is_video
from diffuse.media.load import read_record
from diffuse.media.pixels import pixels_sha256
from diffuse.media.video import Video
from diffuse.paths import user_path
from diffuse.record.record import PARTS
from diffuse.run import model_auto
from diffuse.run.callbacks import Callbacks
from diffuse.run.generation import Generation
from diffuse.run.run import generate
from diffuse.schema import GenerationRequest
from diffuse.smoke.cases import SETTINGS, SIDE, Case, cases
from diffuse.smoke.checkpoints import write_checkpoint
from diffuse.smoke.families import CHECKPOINTS
from diffuse.smoke.junit import JUnitTest, write_junit
from diffuse.smoke.reference import compare_with_reference
from diffuse.terminal import print_error, print_path, say

_FLAT = 2.0  # levels; a picture whose standard deviation is below shows nothing


@dataclass
class Outcome:
    """The result of a case. `faults` is empty where everything is as it should be."""

    case: Case
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    agreement: str = ""  # of its pixels with the recorded ones


def run_suite(cfg: DictConfig, overrides: Sequence[str], junit_file: Path | None = None) -> None:
    """Runs every case under the settings of `cfg`; paths go to standard output, a table to standard error.

    Args:
        overrides: those that `cfg` was composed with.
        junit_file: where to write the results for a continuous-integration server.

    Raises:
        RunError: a case failed, or has faults.
        DiffuseError: nothing can be written to the output folder.
    """
    check_output(user_path(cfg.output.dir, "output.dir"))
    with tempfile.TemporaryDirectory(prefix="diffuse-smoke-", ignore_cleanup_errors=True) as folder:
        inputs = write_inputs(Path(folder))
        outcomes = [_outcome(case, cfg, overrides, inputs) for case in cases()]
    _table(outcomes)
    if junit_file is not None:
        write_junit(junit_file, [JUnitTest(o.case.name, o.seconds, o.faults, o.agreement) for o in outcomes])
    if error := print_error():
        raise RunError(f"standard output cannot be written: {error.strerror}; the pictures are in {cfg.output.dir}")
    failed = sum(bool(outcome.faults) for outcome in outcomes)
    if failed:
        raise RunError(f"{failed} of {len(outcomes)} smoke cases are off, as the table says")
    say(f"all {len(outcomes)} smoke cases are as they should be: {sum(o.seconds for o in outcomes):.1f} s")


def write_inputs(folder: Path) -> dict[str, str]:
    """Writes the checkpoints, a picture to start from and its mask; returns their paths, by the names cases use."""
    paths = {name: str(write_checkpoint(folder / name, checkpoint)) for name, checkpoint in CHECKPOINTS.items()}
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
        generation = run_case(case, cfg, overrides, inputs)
        outcome.faults = [*picture_faults(generation, case), *record_faults(generation)]
        outcome.agreement, fault = compare_with_reference(case.slug, generation)
        outcome.faults += [fault] if fault else []
    except DiffuseError as error:
        outcome.faults = [str(error)]
    except Exception as error:  # the other cases are still worth running
        outcome.faults = [one_line(f"{type(error).__name__}: {error}")]
    outcome.seconds = time.perf_counter() - start
    return outcome


def run_case(case: Case, cfg: DictConfig, overrides: Sequence[str], inputs: Mapping[str, str]) -> Generation:
    """Runs a case as the command runs a request."""
    case_overrides = [override.format_map(inputs) for override in case.overrides]
    composed = model_auto.compose_model(case_overrides)
    for name in SETTINGS:
        composed[name] = cfg[name]
    composed.output.name = case.slug
    settings = [override for override in overrides if override.partition("=")[0] not in ("experiment", "suite")]
    callbacks = Callbacks(on_saved=print_path, messages=False)
    drafts = draft_requests(composed)
    (generation,) = generate(composed, drafts, overrides=[*case_overrides, *settings], save=True, callbacks=callbacks)
    return generation


def picture_faults(generation: Generation, case: Case) -> list[str]:
    """Returns what is wrong with the pictures or films of a run and with their files; empty where nothing is."""
    request, faults = generation.record["request"], []
    frames = generation.frames
    images = frames[:, 0] if generation.fps is None and frames.shape[1] == 1 else frames
    length = [] if generation.fps is None else [frames.shape[1]]
    shape = [request["num_images"], *length, request["height"], request["width"], 3]
    if list(images.shape) != shape:
        faults.append(f"the pictures are {list(images.shape)} and should be {shape}")
    if not all(bool(torch.isfinite(latents).all()) for latents in generation.latents.values()):
        faults.append("its latents are not finite")
    if generation.sound is not None and not bool(np.isfinite(generation.sound).all()):
        faults.append("its sound is not finite")
    if frames.std() < _FLAT:
        faults.append("the pictures show nothing")
    if len(generation.paths) != len(frames):
        faults.append(f"{len(generation.paths)} of {len(frames)} files were written")
    for path, made, expected in zip(generation.paths, frames, generation.records, strict=False):
        if fault := _file_fault(path, made, expected["image"]["pixels_sha256"]):
            faults.append(fault)
        if read_record(path) != expected:
            faults.append(f"the record in {path.name} is not that of the run")
    return faults


def _file_fault(path: Path, frames: np.ndarray, digest: str) -> str:
    """Returns what is wrong with the file of a picture or a film `[F, H, W, 3]`; empty where nothing is."""
    if is_video(path):
        video = Video.open(path)
        height, width = frames.shape[1:3]
        sizes = (width, height), (width + width % 2, height + height % 2)  # of an MP4 they are even
        saved_sha256 = video.pixels_sha256() if is_lossless(path) else ""
        same_size = video.size in sizes and sum(1 for _ in video.each_frame()) == len(frames)
    elif not is_still(path):
        return ""  # sound alone
    else:
        with Image.open(path) as image:
            saved = np.asarray(image.convert("RGB"))
        saved_sha256, same_size = pixels_sha256(saved), saved.shape == frames.shape[1:]
    if not same_size:
        return f"{path.name} is of another size than was made"
    if is_lossless(path) and saved_sha256 != digest:
        return f"{path.name} does not hold the pixels that its record speaks of"
    return ""


def record_faults(generation: Generation) -> list[str]:
    """Returns what the record of a run lacks; empty where nothing."""
    content = generation.record
    missing = [name for name, kind in PARTS.items() if not isinstance(content.get(name, ...), kind)]
    config = [
        name for name in Config.__dataclass_fields__ if name != "text_backend"
    ]  # its own part, where it says much
    required = {"config": config, "request": [*GenerationRequest.__dataclass_fields__]}
    for part, names in required.items():
        missing += [f"{part}.{name}" for name in names if name not in content.get(part, {})]
    for dotted in ("weights.source", "weights.sha256", "hardware.device", "hardware.dtypes", "versions.torch"):
        part, _, name = dotted.partition(".")
        if not content.get(part, {}).get(name):
            missing.append(dotted)
    if len(content.get("images", [])) != len(generation.frames):
        missing.append("images")
    return [f"the record has no {', '.join(missing)}"] if missing else []


def _table(outcomes: Sequence[Outcome]) -> None:
    width = max(len(outcome.case.name) for outcome in outcomes)
    print(f"{'case':<{width}}  seconds  result", file=sys.stderr)
    for outcome in outcomes:
        result = f"OFF: {'; '.join(outcome.faults)}" if outcome.faults else outcome.agreement
        print(f"{outcome.case.name:<{width}}  {outcome.seconds:7.2f}  {result}", file=sys.stderr, flush=True)
