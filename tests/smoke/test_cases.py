"""The cases: one for each thing there is, and nothing that a user could set in vain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import diffuse

from diffuse.config.groups import group_options, load_group
from diffuse.smoke import cases, families, reference


def test_every_family_scheduler_and_way_of_starting_is_there() -> None:
    said = [" ".join(case.overrides) for case in cases.cases()]
    targets = {model._target_ for model in load_group("model").values()}
    models = {re.search(r"model=(\w+)", line)[1] for line in said}  # type: ignore[index]
    presets = load_group("model")
    films = {target for target in targets if ".ltx2" in target}  # for most of which there is no small checkpoint
    films.remove(presets["tiny_video"]._target_)
    assert {presets[model]._target_ for model in models if model != "auto"} == targets - films
    for name in group_options("scheduler"):
        assert any(f"scheduler={name}" in line for line in said)
    for words in ("refiner=sdxl", "input_image=", "mask_image=", "num_images=2", "model=auto", "{sd_inpaint}"):
        assert any(words in line for line in said), words
    for kind in families.CHECKPOINTS:
        assert any(f"{{{kind}}}" in line for line in said), kind


def test_every_case_has_its_pictures() -> None:
    for case in cases.cases():
        count = 2 if "num_images=2" in case.overrides else 1
        assert all(path.is_file() for path in reference.reference_files(case.slug, count)), case.name
    known = {
        path.name for case in cases.cases() for count in (1, 2) for path in reference.reference_files(case.slug, count)
    }
    assert {path.name for path in reference.FOLDER.glob("*.png")} <= known
    for digests in reference.read_digests().values():
        # A sampler that came later has no digest on a platform where nobody has recorded it yet.
        assert set(digests) <= {case.slug for case in cases.cases()}
    assert sum(path.stat().st_size for path in reference.FOLDER.iterdir()) < 150_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("experiment=smoke", "seed=3"), "seed=3: experiment=smoke makes requests of its own"),
        (("experiment=smoke", "model=sdxl"), "model=sdxl: experiment=smoke makes requests of its own"),
        (("experiment=smoke", "output.name=x"), "output.name=x: experiment=smoke"),
        (("experiment=smoke", "-m", "hardware.threads=1,2"), "leave out -m"),
        (("experiment=smoke", "--junit"), "--junit FILE"),
        (("experiment=smoke", "--junit", "."), "is a folder"),
        (("experiment=smoke", "--junit=no/such/x.xml"), "its folder does not exist"),
        (("seed=1", "--junit", "x.xml"), "add experiment=smoke"),
        (("experiment=smoke", "output.dir=/proc/x"), "output.dir=/proc/x cannot be written"),
    ],
)
def test_what_it_does_not_take(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = diffuse(*arguments, cwd=tmp_path)
    assert (done.status, done.out) == (2, "") and said in done.err, done.err
    assert list(tmp_path.iterdir()) == []
