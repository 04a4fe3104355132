"""`diffuse reproduce`: makes the pictures of a record again, and says whether they are the same."""

from __future__ import annotations

from pathlib import Path

from diffuse.checkpoints.checkpoint import checkpoint_record
from diffuse.errors import RunError
from diffuse.media.pixels import levels, pixels_sha256, psnr
from diffuse.record import differences
from diffuse.reproduce.replay import Replay
from diffuse.run import open as opening
from diffuse.run.callbacks import Callbacks
from diffuse.run.generation import Generation
from diffuse.run.run import BatchNeighbors, generate
from diffuse.terminal import print_error, print_path, say


def reproduce(asked: Replay) -> list[Path]:
    """Makes, saves and tracks what `asked` is, prints each saved path, and says on standard error what came of it.

    Raises:
        DiffuseError: it cannot be made here, and nothing was; or RunError: it was made, and is not the same.
    """
    for note in asked.notes:
        say(note)
    _compare_weights(asked)
    (made,) = generate(
        asked.cfg,
        asked.drafts,
        overrides=asked.overrides,
        save=True,
        neighbors=BatchNeighbors(asked.before, asked.after),
        callbacks=Callbacks(on_saved=print_path),
    )
    if error := print_error():
        raise RunError(
            f"standard output cannot be written: {error.strerror}; the pictures are in {asked.cfg.output.dir}"
        )
    _verdict(asked, made)
    return made.paths


def _compare_weights(asked: Replay) -> None:
    """Says before the run what it could not hide: that the weights are others. Those that are not here are fetched, if
    the user agrees."""
    weights = asked.recorded.record["weights"]
    opened = opening.open_pipeline(asked.cfg)
    for checkpoint, recorded in zip(opened.checkpoints, (weights, weights.get("refiner")), strict=False):
        for cause in differences.of_weights(recorded, checkpoint_record(checkpoint), "weights"):
            say(f"{checkpoint.source}: {cause}")


def _verdict(asked: Replay, made: Generation) -> None:
    """Says of each picture whether it is the recorded one, and what may be why if not.

    Raises:
        RunError: one of them is not.
    """
    causes = differences.between(asked.recorded.record, made.record)
    digests = [image["pixels_sha256"] for image in made.record["images"]]
    wrong = 0
    for index, path in zip(sorted(asked.digests), made.paths, strict=True):
        same = digests[index] == asked.digests[index]
        changed = _changed(asked, index)
        say(f"{path}: {'identical' if same else _apart(asked, made, index)}{changed}")
        wrong += not same or bool(changed)
    if not wrong:
        if causes:
            say(f"identical, although {'; '.join(causes)}")
        return
    for cause in causes:
        say(f"  {cause}")
    if not causes and asked.cfg.hardware.deterministic.name == "relaxed":
        say("  nothing in the record differs; hardware.deterministic=relaxed does not promise the same bits")
    count = len(asked.digests)
    what = "it is not the recorded picture" if count == 1 else f"{wrong} of {count} are not the recorded pictures"
    raise RunError(f"{asked.recorded.shown}: was made again, and {what}")


def _apart(asked: Replay, made: Generation, index: int) -> str:
    """How far a picture is from the recorded one, where that is at hand."""
    theirs = asked.pixels.get(index)
    if theirs is None:
        return "not identical; how far apart they are only the recorded picture could tell"
    ours = made.frames[index, 0]
    if ours.shape != theirs.shape:
        sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (ours, theirs)]
        return f"not identical; {sizes[0]}, and the recorded one {sizes[1]}"
    loss = "" if asked.recorded.lossless else ", of which some is the file's own compression"
    apart = levels(ours, theirs)
    return f"not identical; up to {apart} of 255 levels apart, PSNR {psnr(ours, theirs):.1f} dB{loss}"


def _changed(asked: Replay, index: int) -> str:
    """A clause for a file whose pixels are not those that its own record speaks of."""
    theirs = asked.pixels.get(index)
    if theirs is None or not asked.recorded.lossless or pixels_sha256(theirs) == asked.digests[index]:
        return ""
    return "; but the file's own pixels were changed after it was made"
