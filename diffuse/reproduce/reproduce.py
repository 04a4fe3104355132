"""Runs a reproduction: makes the images of a record again, and reports whether they are identical."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffuse.checkpoints.checkpoint import checkpoint_record
from diffuse.errors import RunError
from diffuse.media.pixels import largest_difference, pixels_sha256, psnr_of_error, squared_error
from diffuse.record.differences import record_differences, weights_differences
from diffuse.reproduce.reproduction import Reproduction
from diffuse.run.callbacks import Callbacks
from diffuse.run.generation import Generation
from diffuse.run.open import open_pipeline
from diffuse.run.run import BatchNeighbors, generate
from diffuse.terminal import print_error, print_path, say


def reproduce(reproduction: Reproduction) -> list[Path]:
    """Makes, saves and tracks the images, prints each saved path, and reports on standard error whether they agree.

    Raises:
        DiffuseError: they cannot be made here, and none was.
        RunError: they were made, and are not identical.
    """
    for note in reproduction.notes:
        say(note)
    _compare_weights(reproduction)
    (generation,) = generate(
        reproduction.cfg,
        reproduction.drafts,
        overrides=reproduction.overrides,
        save=True,
        neighbors=BatchNeighbors(reproduction.before, reproduction.after),
        step_downs=reproduction.step_downs,
        callbacks=Callbacks(on_saved=print_path),
    )
    if error := print_error():
        raise RunError(
            f"standard output cannot be written: {error.strerror}; the pictures are in {reproduction.cfg.output.dir}"
        )
    _report(reproduction, generation)
    return generation.paths


def _compare_weights(reproduction: Reproduction) -> None:
    """Reports before the run that the weights are others. Missing ones are fetched, if the user agrees."""
    weights = reproduction.recorded.record["weights"]
    opened = open_pipeline(reproduction.cfg)
    for checkpoint, recorded in zip(opened.checkpoints, (weights, weights.get("refiner")), strict=False):
        for cause in weights_differences(recorded, checkpoint_record(checkpoint), "weights"):
            say(f"{checkpoint.source}: {cause}")


def _report(reproduction: Reproduction, generation: Generation) -> None:
    """Reports for each image whether it is the recorded one, and the likely causes if not.

    Raises:
        RunError: one of them is not.
    """
    causes = record_differences(reproduction.recorded.record, generation.record)
    wrong = 0
    for index, path in zip(sorted(reproduction.digests), generation.paths, strict=True):
        image = generation.record["images"][index]
        same = image["pixels_sha256"] == reproduction.digests[index]
        same_sound = image.get("sound_sha256") == reproduction.sounds[index]
        note = _change_note(reproduction, index)
        difference = "identical" if same else _difference(reproduction, generation, index)
        sound = "" if same_sound else "; its sound is not identical"
        say(f"{path}: {difference}{sound}{note}")
        wrong += not same or not same_sound or bool(note)
    if not wrong:
        if causes:
            say(f"identical, although {'; '.join(causes)}")
        return
    for cause in causes:
        say(f"  {cause}")
    if not causes and reproduction.cfg.hardware.deterministic.name == "relaxed":
        say("  nothing in the record differs; hardware.deterministic=relaxed does not promise the same bits")
    count, kind = len(reproduction.digests), "picture" if generation.fps is None else "film"
    fault = f"it is not the recorded {kind}" if count == 1 else f"{wrong} of {count} are not the recorded {kind}s"
    raise RunError(f"{reproduction.recorded.label}: was made again, and {fault}")


def _difference(reproduction: Reproduction, generation: Generation, index: int) -> str:
    """Returns how far an image or a film is from the recorded one, where that is at hand."""
    kind = "picture" if generation.fps is None else "film"
    theirs = _recorded_frames(reproduction, index)
    if theirs is None:
        return f"not identical; how far apart they are only the recorded {kind} could tell"
    height, width = generation.frames.shape[2:4]
    levels, errors, count = 0, 0.0, 0
    for ours, frame in zip(generation.frames[index], theirs, strict=False):
        # An MP4 has sides of even length, and an odd one its last row or column once more.
        if frame.shape[:2] not in ((height, width), (height + height % 2, width + width % 2)):
            return f"not identical; {width} x {height}, and the recorded one {frame.shape[1]} x {frame.shape[0]}"
        frame = frame[:height, :width]
        levels = max(levels, largest_difference(ours, frame))
        errors, count = errors + squared_error(ours, frame), count + 1
    loss = "" if reproduction.recorded.lossless else ", of which some is the file's own compression"
    return f"not identical; up to {levels} of 255 levels apart, PSNR {psnr_of_error(errors / count):.1f} dB{loss}"


def _recorded_frames(reproduction: Reproduction, index: int) -> Iterator[np.ndarray] | None:
    """Returns the recorded frames `[H, W, 3]`, read one at a time; None where they are not at hand."""
    if index in reproduction.pixels:
        return iter([reproduction.pixels[index]])
    return reproduction.films[index].each_frame() if index in reproduction.films else None


def _change_note(reproduction: Reproduction, index: int) -> str:
    """Returns a clause for a file whose pixels have not the digest in its own record, empty otherwise."""
    if not reproduction.recorded.lossless:
        return ""
    pixels, film = reproduction.pixels.get(index), reproduction.films.get(index)
    if pixels is not None:
        digest = pixels_sha256(pixels)
    elif film is not None:
        digest = film.pixels_sha256()
    else:
        return ""
    changed = digest != reproduction.digests[index]
    return "; but the file's own pixels were changed after it was made" if changed else ""
