"""The references that cells are measured against."""

from __future__ import annotations

from pathlib import Path

from compared import read_table, sweep

from diffuse.compare.report import ReportOptions, compare_folder


def test_references_can_be_chosen(tmp_path: Path) -> None:
    sweep(tmp_path / "s" / "a", 2, (4, 8))
    sweep(tmp_path / "s" / "b", 2, (4, 8), scheduler="euler")

    def references(*wanted: str) -> set[tuple[str, str]]:
        found = compare_folder(tmp_path / "s", tmp_path / "out", ReportOptions(reference=wanted, sheets=False))
        return {
            (row["file"].partition("/s/")[2], row["reference"].partition("/s/")[2])
            for row in read_table(found[0].parent)
        }

    assert ("a/1-8/seed1_steps8.png", "b/1-8/seed1_steps8.png") in references("scheduler=euler")
    assert ("a/1-8/seed1_steps8.png", "b/1-4/seed1_steps4.png") in references("Sampler=euler", "steps=4")
    one = str(tmp_path / "s" / "a" / "0-4" / "seed0_steps4.png")
    assert {reference for _, reference in references(one)} == {"a/0-4/seed0_steps4.png"}


def test_a_reference_without_a_value_is_named_as_it_is_typed_and_as_it_is_shown(tmp_path: Path) -> None:
    for clip_skip in (None, 1):
        sweep(tmp_path / "s" / str(clip_skip), 1, (4,), clip_skip=clip_skip)
    for wanted in ("null", "none"):
        options = ReportOptions(reference=(f"clip_skip={wanted}",), sheets=False)
        found = compare_folder(tmp_path / "s", tmp_path / "out", options)
        assert {Path(row["reference"]).parts[-3] for row in read_table(found[0].parent)} == {"None"}
