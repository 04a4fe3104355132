"""The fields that vary, and where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from compared import job, record, refused, save, sweep

from diffuse.compare.axes import Layout, find_axes, place_axes
from diffuse.compare.cells import Cell, build_cell, cells_in_file, cells_in_folder
from diffuse.compare.report import compare_folder
from diffuse.errors import ConfigError


def cells(folder: Path) -> list[Cell]:
    return cells_in_folder(folder).cells


def keys(found: list[Cell]) -> list[str]:
    return [axis.key for axis in find_axes(found)]


def plan(found: list[Cell], **wanted: str) -> Layout:
    return place_axes(found, find_axes(found), wanted)


def places(chosen: Layout) -> tuple[str | None, str | None, list[str]]:
    x, y = chosen.x, chosen.y
    return x.key if x else None, y.key if y else None, [axis.key for axis in chosen.sheets]


def test_what_varies_are_the_axes_and_nothing_that_follows(tmp_path: Path) -> None:
    for seed in (1, 2):
        for name in ("ddim", "euler"):  # which have another eta
            save(tmp_path / f"{seed}{name}", seed, 4, scheduler=name)
    assert keys(cells(tmp_path)) == ["scheduler", "seed"]
    save(tmp_path / "more", 1, 4, scheduler="ddim", **{"scheduler.eta": 0.5})
    assert keys(cells(tmp_path)) == ["scheduler", "scheduler.eta", "seed"]


def test_a_field_that_nobody_typed_and_that_follows_is_no_axis(tmp_path: Path) -> None:
    found = []
    for model, guidance in (("tiny", 3.0), ("sd21", 7.5)):
        about = record(1, 4, guidance_scale=guidance)
        about["config"]["model"]["name"] = model
        about["overrides"] = [f"model={model}"]
        found.append(build_cell(tmp_path / f"{model}.png", about))
    assert keys(found) == ["model"]


def test_values_are_in_order(tmp_path: Path) -> None:
    for steps in (100, 9, 20):
        save(tmp_path, 1, steps, **{"scheduler.eta": None if steps == 9 else steps / 1000})
    found = cells(tmp_path)
    assert [axis.values for axis in find_axes(found)] == [(9, 20, 100), (None, 0.02, 0.1)]
    assert plan(found).axes[0].title(9) == "Steps: 9"


def test_most_values_are_columns_and_texts_are_rows(tmp_path: Path) -> None:
    sweep(tmp_path / "a", 4, (4, 8, 16))
    sweep(tmp_path / "b", 4, (4, 8, 16), scheduler="euler")
    assert places(plan(cells(tmp_path))) == ("seed", "num_inference_steps", ["scheduler"])
    for text in "abc":
        sweep(tmp_path / "prompts" / text, 2, (4,), prompt=text)
    chosen = places(plan(cells(tmp_path / "prompts")))
    assert chosen == ("seed", "prompt", [])


def test_axes_can_be_chosen(tmp_path: Path) -> None:
    sweep(tmp_path / "a", 4, (4, 8, 16))
    sweep(tmp_path / "b", 4, (4, 8, 16), scheduler="euler")
    found = cells(tmp_path)
    assert places(plan(found, x="Sampler", y="seed")) == ("scheduler", "seed", ["num_inference_steps"])
    assert places(plan(found, z="seed")) == ("num_inference_steps", "scheduler", ["seed"])
    assert places(plan(found, y="seed")) == ("num_inference_steps", "seed", ["scheduler"])
    with pytest.raises(ConfigError, match="one axis"):
        plan(found, x="seed", z="seed")


def test_an_axis_that_another_decides_makes_no_sheets(tmp_path: Path) -> None:
    for seed in range(4):
        save(tmp_path / str(seed), seed, 4 + seed)
    chosen = plan(cells(tmp_path))
    assert (len([axis for axis in (chosen.x, chosen.y) if axis]), chosen.sheets) == (1, ())


def test_runs_that_nothing_tells_apart_are_told_apart_by_their_files(tmp_path: Path) -> None:
    save(tmp_path / "a", 1, 4)
    save(tmp_path / "b", 1, 4)
    assert keys(cells(tmp_path)) == ["file"]
    assert compare_folder(tmp_path)


def test_what_auto_chose_and_a_reproduction_names_is_no_axis(tmp_path: Path) -> None:
    found = []
    for name in ("auto", "cpu"):
        about = record(1, 4, **{"hardware.name": name, "hardware.threads": 1 if name == "cpu" else None})
        about |= {"overrides": ["seed=1"], "determinism": {"threads": 1}}
        about |= {"hardware": {"device": "cpu", "memory_profile": {"name": "cpu_only"}}}
        found.append(build_cell(tmp_path / f"{name}.png", about))
    assert keys(found) == ["file"]
    found[1].record["hardware"]["device"] = "cuda"
    assert keys(found) == ["hardware"]


def test_runs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        about = {"prompt": f"p{number}", "width": 32 * number, "height": 24 * number, "guidance_scale": float(number)}
        path = save(tmp_path / str(number), number, number, scheduler=f"s{number}", **about)
        whole = cells_in_file(path).cells[0].record
        job(tmp_path / str(number), path, {**whole, "config": {**whole["config"], "model": {"name": f"m{number}"}}})
    assert "nothing in common" in refused(tmp_path / "1", tmp_path / "2", "--out", "out", cwd=tmp_path)
