"""Runs a reproduction: makes the images of a record again, and reports whether they are identical."""

from __future__ import annotations

from pathlib import Path

from diffuse.checkpoints.checkpoint import checkpoint_record
from diffuse.errors import RunError
from diffuse.media.pixels import largest_difference, pixels_sha256, psnr
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
    digests = [image["pixels_sha256"] for image in generation.record["images"]]
    wrong = 0
    for index, path in zip(sorted(reproduction.digests), generation.paths, strict=True):
        same = digests[index] == reproduction.digests[index]
        note = _change_note(reproduction, index)
        say(f"{path}: {'identical' if same else _difference(reproduction, generation, index)}{note}")
        wrong += not same or bool(note)
    if not wrong:
        if causes:
            say(f"identical, although {'; '.join(causes)}")
        return
    for cause in causes:
        say(f"  {cause}")
    if not causes and reproduction.cfg.hardware.deterministic.name == "relaxed":
        say("  nothing in the record differs; hardware.deterministic=relaxed does not promise the same bits")
    count = len(reproduction.digests)
    fault = "it is not the recorded picture" if count == 1 else f"{wrong} of {count} are not the recorded pictures"
    raise RunError(f"{reproduction.recorded.label}: was made again, and {fault}")


def _difference(reproduction: Reproduction, generation: Generation, index: int) -> str:
    """Returns how far an image is from the recorded one, where that is at hand."""
    theirs = reproduction.pixels.get(index)
    if theirs is None:
        return "not identical; how far apart they are only the recorded picture could tell"
    ours = generation.frames[index, 0]
    if ours.shape != theirs.shape:
        sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (ours, theirs)]
        return f"not identical; {sizes[0]}, and the recorded one {sizes[1]}"
    loss = "" if reproduction.recorded.lossless else ", of which some is the file's own compression"
    levels = largest_difference(ours, theirs)
    return f"not identical; up to {levels} of 255 levels apart, PSNR {psnr(ours, theirs):.1f} dB{loss}"


def _change_note(reproduction: Reproduction, index: int) -> str:
    """Returns a clause for a file whose pixels have not the digest in its own record, empty otherwise."""
    theirs = reproduction.pixels.get(index)
    if theirs is None or not reproduction.recorded.lossless or pixels_sha256(theirs) == reproduction.digests[index]:
        return ""
    return "; but the file's own pixels were changed after it was made"
