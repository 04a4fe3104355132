"""The record of a checkpoint, made through its interface alone."""

from __future__ import annotations

from pathlib import Path

from checkpoint_files import WHOLE, checkpoint, tensors

from diffuse.checkpoints.checkpoint import Checkpoint, checkpoint_record, weights_tag


def test_the_record_names_every_source(tmp_path: Path) -> None:
    whole: Checkpoint = checkpoint(tmp_path, {WHOLE: tensors()})
    record = checkpoint_record(whole)
    assert record == {"source": str(tmp_path), "revision": None, "variant": None, "sha256": whole.digest()}
    refined = {**record, "components": {"vae": record}, "refiner": record}
    one = f"{tmp_path}@{whole.digest()}"
    assert weights_tag(refined) == f"{one}; vae={one}; refiner={one}"
