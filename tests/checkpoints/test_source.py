"""A source's checkpoint, once its files are in a folder."""

from __future__ import annotations

from pathlib import Path

from diffuse.checkpoints.source import Source


def test_a_single_component_is_the_only_one_of_its_checkpoint(tmp_path: Path) -> None:
    vae = Source("owner/vae", "main", "fp16", ("vae",), "model.vae", single=True)
    one = vae.checkpoint(tmp_path, "0" * 40, at_root=True)
    assert (one.component, one.revision, one.display_name("vae", "config.json")) == (
        "vae",
        "0" * 40,
        "owner/vae/config.json",
    )
    whole = Source("owner/name", components=("unet", "vae")).checkpoint(tmp_path)
    assert (whole.component, whole.display_name("vae")) == (None, "owner/name/vae")
