"""`diffuse compare` on files and folders: what is read, which axes there are, what is written, and what is refused."""

from __future__ import annotations

import csv
import itertools
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Done, diffuse, smoke
from compared import PROMPT, job, pixels, record, save, sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuse import compare
from diffuse.compare import metrics, sheet
from diffuse.compare.axes import Layout, axes_of, layout
from diffuse.compare.cells import Cell, cell_of, of_file, of_folder
from diffuse.compare.command import command, obstacle
from diffuse.errors import ConfigError, DiffuseError
from diffuse.media.load import read_record
from diffuse.media.save import save_media


def cells(folder: Path) -> list[Cell]:
    return of_folder(folder).cells


def keys(found: list[Cell]) -> list[str]:
    return [axis.key for axis in axes_of(found)]


def plan(found: list[Cell], **wanted: str) -> Layout:
    return layout(found, axes_of(found), wanted)


def places(chosen: Layout) -> tuple[str | None, str | None, list[str]]:
    x, y = chosen.x, chosen.y
    return x.key if x else None, y.key if y else None, [axis.key for axis in chosen.sheets]


def run(*arguments: Any, cwd: Path) -> Done:
    return diffuse("compare", *arguments, cwd=cwd)


def refused(*arguments: Any, cwd: Path) -> str:
    """The one line that refuses it; nothing is left behind."""
    before = sorted(cwd.rglob("*"))
    done = run(*arguments, cwd=cwd)
    assert (done.status, done.out) == (2, ""), done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(cwd.rglob("*")) == before
    return done.err


# What is read


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff"])
def test_pictures_of_a_folder_are_cells(format: str, tmp_path: Path) -> None:
    save(tmp_path / "deep" / "down", 7, 20, format=format)
    (cell,) = cells(tmp_path)
    assert (cell.config["seed"], cell.config["num_inference_steps"], cell.config["scheduler"]) == (7, 20, "ddim")
    assert cell.seconds == pytest.approx(2.0)  # without loading
    assert not [key for key in cell.config if key.startswith(("output", "tracking")) or key.endswith("_target_")]


def test_the_seed_is_the_pictures_own_and_the_time_its_share(tmp_path: Path) -> None:
    about = record(40, 8, seconds=3.0)
    about["config"]["num_images"] = about["request"]["num_images"] = 3
    about["image"]["seed"] = 42
    cell = cell_of(tmp_path / "x.png", about)
    assert (cell.config["seed"], cell.seconds) == (42, 1.0)
    assert command(cell).endswith("seed=42 num_inference_steps=8 scheduler=ddim num_images=1")  # 3 were nobody's words
    about["overrides"].append("num_images=3")
    assert "num_images" not in command(cell_of(tmp_path / "x.png", about))


def test_jobs_are_read_from_job_json_and_failures_told(tmp_path: Path) -> None:
    path = save(tmp_path / "1", 1, 4)
    about = record(2, 8)  # what job.json says goes before what is in the file
    job(tmp_path / "1", path, about, run_id="abc")
    job(tmp_path / "2", None, record(3, 8))
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "job.json").write_text("{ not whole")
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "job.json").write_text('["of another shape"]')
    (tmp_path / "sweep.json").write_text('{"name": "seeds by steps"}')

    found = of_folder(tmp_path)
    assert found.title == "seeds by steps"
    (cell,) = found.cells
    assert (cell.path, cell.config["seed"], cell.run_id) == (path, 2, "abc")
    assert [failure.error for failure in found.failures if failure.overrides] == ["RunError: the disk is full"]
    assert of_file(path).cells[0].run_id == "abc"


def test_a_job_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    save(tmp_path, 1, 4, name="outside")
    job(tmp_path / "job", Path("..", "outside.png"), record(1, 4), media=[{"file": "../outside.png"}])
    assert cells(tmp_path / "job") == []


def test_strangers_and_reports_are_left_out(tmp_path: Path) -> None:
    sweep(tmp_path, 2, (4, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    (tmp_path / "text.png").write_text("no picture")
    compare.report(tmp_path)
    found = of_folder(tmp_path)
    assert (len(found.cells), found.foreign) == (4, 2)  # and not the sheets


# Axes


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
        found.append(cell_of(tmp_path / f"{model}.png", about))
    assert keys(found) == ["model"]


def test_values_are_in_order(tmp_path: Path) -> None:
    for steps in (100, 9, 20):
        save(tmp_path, 1, steps, **{"scheduler.eta": None if steps == 9 else steps / 1000})
    found = cells(tmp_path)
    assert [axis.values for axis in axes_of(found)] == [(9, 20, 100), (None, 0.02, 0.1)]
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


# The report


def test_everything_is_written_and_printed(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 3, (4, 8, 16))
    done = run("s", cwd=tmp_path)
    assert done.status == 0, done.err
    names = [path.name for path in done.paths]
    assert names == ["report.html", "table.csv", "quality_by_steps.png", *names[3:]]
    assert names[3:] == ["seconds_by_steps.png", "sheet.png"]
    assert {path.parent for path in done.paths} == {Path("s", "report")}
    assert sorted(path.name for path in (tmp_path / "s" / "report").iterdir()) == sorted(names)


def table(report: Path) -> list[dict[str, str]]:
    with open(report / "table.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_measures_against_the_most_steps(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8, 16))
    report = compare.report(tmp_path / "s")[0].parent
    rows = table(report)
    assert [(row["num_inference_steps"], row["seed"]) for row in rows[:2]] == [("4", "0"), ("4", "1")]
    for row in rows:
        seed, steps = int(row["seed"]), int(row["num_inference_steps"])
        assert (report / row["file"]).resolve() == (tmp_path / "s" / f"{seed}-{steps}" / f"seed{seed}_steps{steps}.png")
        assert row["reference"] == f"../{seed}-16/seed{seed}_steps16.png"
        assert float(row["seconds"]) == pytest.approx(0.1 * steps)
        if steps == 16:
            assert (row["psnr_db"], row["ssim"], row["flip"]) == ("", "", "")
        else:
            expected = metrics.difference(pixels(seed, steps), pixels(seed, 16))
            assert expected is not None and expected.ssim is not None
            assert float(row["psnr_db"]) == pytest.approx(expected.psnr, rel=1e-5)
            assert float(row["ssim"]) == pytest.approx(expected.ssim, rel=1e-5)
            assert float(row["flip"]) == pytest.approx(expected.flip, rel=1e-5)


def test_references_can_be_chosen(tmp_path: Path) -> None:
    sweep(tmp_path / "s" / "a", 2, (4, 8))
    sweep(tmp_path / "s" / "b", 2, (4, 8), scheduler="euler")

    def references(*wanted: str) -> set[tuple[str, str]]:
        found = compare.report(tmp_path / "s", tmp_path / "out", compare.Wanted(reference=wanted, sheets=False))
        return {
            (row["file"].partition("/s/")[2], row["reference"].partition("/s/")[2]) for row in table(found[0].parent)
        }

    assert ("a/1-8/seed1_steps8.png", "b/1-8/seed1_steps8.png") in references("scheduler=euler")
    assert ("a/1-8/seed1_steps8.png", "b/1-4/seed1_steps4.png") in references("Sampler=euler", "steps=4")
    one = str(tmp_path / "s" / "a" / "0-4" / "seed0_steps4.png")
    assert {reference for _, reference in references(one)} == {"a/0-4/seed0_steps4.png"}


def test_sheets_have_the_pictures_in_their_places(tmp_path: Path) -> None:
    sweep(tmp_path, 3, (4, 8))
    (path,) = (path for path in compare.report(tmp_path) if path.name == "sheet.png")
    drawn = np.asarray(Image.open(path).convert("RGB"))
    height, width = 24 * 4, 32 * 4  # small pictures are drawn larger
    found = []
    for steps in (4, 8):
        for seed in range(3):
            whole = np.kron(pixels(seed, steps), np.ones((4, 4, 1), np.uint8))
            match = [
                (x, y)
                for y in range(drawn.shape[0] - height + 1)
                for x in range(drawn.shape[1] - width + 1)
                if (drawn[y, x] == whole[0, 0]).all() and (drawn[y : y + height, x : x + width] == whole).all()
            ]
            found += match
    assert len(found) == 6
    assert [x for x, _ in found[:3]] == sorted({x for x, _ in found}) == [x for x, _ in found[3:]]
    assert len({y for _, y in found[:3]}) == 1 and found[0][1] < found[3][1]


def test_sheets_are_one_a_value_and_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(tmp_path / "a", 4, (4, 8, 16))
    sweep(tmp_path / "b", 4, (4, 8, 16), scheduler="euler")
    names = [path.name for path in compare.report(tmp_path) if path.name.startswith("sheet")]
    assert names == ["sheet_Sampler_ddim.png", "sheet_Sampler_euler.png"]

    monkeypatch.setattr(sheet, "MOST_SIDE", 520)
    paths = [path for path in compare.report(tmp_path) if path.name.startswith("sheet")]
    assert len(paths) == 4 and "sheet_Sampler_euler_page1.png" in [path.name for path in paths]
    assert max(max(Image.open(path).size) for path in paths) <= 520
    assert not (tmp_path / "report" / "sheet_Sampler_ddim.png").exists()  # of the earlier report


def test_no_side_of_a_sheet_is_beyond_what_viewers_open(tmp_path: Path) -> None:
    (cell,) = cells(save(tmp_path, 0, 4).parent)
    heads = [str(number) for number in range(300)]
    large = sheet.Sheet("", heads, heads, dict.fromkeys(itertools.product(range(300), range(300)), cell))
    pages = sheet._pages(large, (512, 512))
    for page in pages:
        across, down = len(page.columns) * 518, len(page.rows) * 518
        assert max(across, down) <= sheet.MOST_SIDE and across * down <= sheet.MOST_PIXELS
    assert sum(len(page.columns) * len(page.rows) for page in pages) == 300 * 300


def test_what_was_made_twice_gets_a_sheet_of_its_own(tmp_path: Path) -> None:
    sweep(tmp_path / "a", 2, (4, 8))
    sweep(tmp_path / "b", 2, (4, 8))
    names = [path.name for path in compare.report(tmp_path) if path.name.startswith("sheet")]
    assert names == ["sheet.png", "sheet_again_2.png"]


def test_runs_that_nothing_tells_apart_are_told_apart_by_their_files(tmp_path: Path) -> None:
    save(tmp_path / "a", 1, 4)
    save(tmp_path / "b", 1, 4)
    assert keys(cells(tmp_path)) == ["file"]
    assert compare.report(tmp_path)


def test_one_picture_is_compared_too(tmp_path: Path) -> None:
    save(tmp_path, 1, 4)
    assert run("seed1_steps4.png", "--out", "out", "--no-sheets", cwd=tmp_path).paths == [
        Path("out/report.html"),
        Path("out/table.csv"),
    ]


def test_folders_and_files_are_mixed_and_each_counts_once(tmp_path: Path) -> None:
    sweep(tmp_path / "a", 2, (4, 8))
    other = save(tmp_path / "b", 9, 4)
    done = run("a", "a/0-4/seed0_steps4.png", other, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.status == 0, done.err
    assert len(table(tmp_path / "out")) == 5


def test_a_report_replaces_its_predecessor_and_nothing_else(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8))
    out = tmp_path / "out"
    out.mkdir()
    mine = save(out, 0, 4, name="sheet_music")
    (out / "table.csv").write_text("mine")
    assert "table.csv is there already" in refused("s", "--out", "out", cwd=tmp_path)
    (out / "table.csv").unlink()
    assert run("s", "--out", "out", cwd=tmp_path).status == 0
    assert (out / "sheet.png").exists() and mine.exists()
    assert run("s", "--out", "out", "--no-sheets", cwd=tmp_path).status == 0
    assert not (out / "sheet.png").exists() and mine.exists()


def test_a_report_of_what_diffuse_really_made(tmp_path: Path) -> None:
    for seed in (1, 2):
        smoke(f"seed={seed}", "num_images=2", f"output.dir=r/{seed}", f"num_inference_steps={seed}", cwd=tmp_path)
    done = run("r", "--x", "steps", cwd=tmp_path)
    assert done.status == 0, done.err
    rows = table(tmp_path / "r" / "report")
    assert [(row["seed"], row["num_inference_steps"]) for row in rows] == [
        ("1", "1"),
        ("2", "1"),
        ("2", "2"),
        ("3", "2"),
    ]
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert [bool(row["ssim"]) for row in rows] == [False, True, False, False]


# Commands


def test_the_command_is_what_a_shell_gives_back(tmp_path: Path) -> None:
    cell = cell_of(tmp_path / "x.png", record(5, 4, **{"scheduler.eta": 0.5}))
    words = shlex.split(command(cell))
    assert words[0] == "diffuse"
    assert f"prompt={PROMPT}" in words and "scheduler.eta=0.5" in words
    assert not [word for word in words if word.startswith(("output", "tracking"))]
    echoed = subprocess.run(["sh", "-c", command(cell).replace("diffuse", "printf '%s\\n'", 1)], capture_output=True)
    assert f"prompt={PROMPT}".encode() in echoed.stdout.split(b"\n")


def test_the_command_makes_the_same_picture(tmp_path: Path) -> None:
    odd = 'a cactus, "quoted" it\'s $HOME `x` (1+1)=2\nnext line'
    made = smoke(f"prompt={odd}", "seed=3", "num_images=2", "output.dir=a", cwd=tmp_path)
    second = cells(tmp_path / "a")[1]
    words = shlex.split(command(second))[1:]
    again = smoke(*words, "hardware.deterministic=strict", "output.dir=b", cwd=tmp_path)
    assert len(made.paths) == 2 and len(again.paths) == 1
    pictures = [np.asarray(Image.open(tmp_path / path), np.int16) for path in (made.paths[1], again.paths[0])]
    assert abs(pictures[0] - pictures[1]).max() <= 2


def test_a_command_that_does_not_make_the_same_picture_says_so(tmp_path: Path) -> None:
    about = record(1, 4)
    assert obstacle(cell_of(tmp_path / "x.png", about)) == ""
    about["inputs"] = {"latents": {"sha256": "0"}}
    assert "noise" in obstacle(cell_of(tmp_path / "x.png", about))


def test_a_prompt_of_a_file_and_a_drawn_seed_are_written_out(tmp_path: Path) -> None:
    about = record(5, 4)
    about["overrides"] = ["prompt_file=prompts.txt", "num_images=4"]
    assert shlex.split(command(cell_of(tmp_path / "x.png", about))) == ["diffuse", f"prompt={PROMPT}", "seed=5"]


# What is refused


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "seed",
    "prompt",
    "num_images",
    "num_inference_steps",
    "width",
    "scheduler",
    "model",
    "total_s",
    "load_s",
    "name",
)
PART = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)
STRANGER = st.fixed_dictionaries(
    {"config": PART.filter(bool), "request": PART.filter(bool)},
    optional={
        **dict.fromkeys(("image", "timings", "inputs"), PART | JSON),
        "overrides": st.lists(st.text() | JSON) | JSON,
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STRANGER, min_size=1, max_size=3))
def test_whatever_a_strangers_record_holds_nothing_breaks(records: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, about in enumerate(records):
            path = save_media(pixels(number, 4)[None], folder / str(number), "x", record=record(0, 4))
            whole = {"overrides": [], "status": "done", "media": [{"file": "x.png"}], "run_id": None}
            job(path.parent, path, record(0, 4), **whole, record={**about, "images": [about.get("image")]})
        try:
            files = compare.report(folder)
        except DiffuseError as error:
            assert error.exit_status == 2 and "\n" not in str(error)
        else:
            assert files[0].stat().st_size > 0


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    path = save(tmp_path, 1, 4)
    job(tmp_path, path, record(1, 4))
    path.unlink()
    assert [failure.error for failure in of_folder(tmp_path).failures] == ["seed1_steps4.png is gone"]


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "x").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "bad" / "foreign.png")
    for arguments, said in (
        ((), "names nothing"),
        (("empty",), "no picture or video"),
        (("bad",), "1 without a record"),
        (("foreign.png",), "holds no record"),
        (("nowhere/at/all",), "no such file or folder"),
        (("no.png",), "no such file or folder"),
        (("s", "--x", "seeed"), "did you mean seed?"),
        (("s", "--y", "stepps"), "did you mean num_inference_steps?"),
        (("s", "--z", "guidance_scale"), "does not vary"),
        (("s", "--x", "seed", "--y", "seed"), "one axis"),
        (("s", "--x"), "needs a value"),
        (("s", "--shets"), "no such option"),
        (("s", "--no-sheet"), "did you mean --no-sheets?"),
        (("s", "--reference", "foreign.png"), "not among the cells"),
        (("s", "--reference", "num_inference_steps=5"), "one of 4, 8"),
        (("s", "--reference", "foreign.png", "--reference", "seed=0"), "is one cell"),
    ):
        assert said in refused(*arguments, cwd=tmp_path), arguments


def test_runs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        about = {"prompt": f"p{number}", "width": 32 * number, "height": 24 * number, "guidance_scale": float(number)}
        path = save(tmp_path / str(number), number, number, scheduler=f"s{number}", **about)
        whole = of_file(path).cells[0].record
        job(tmp_path / str(number), path, {**whole, "config": {**whole["config"], "model": {"name": f"m{number}"}}})
    assert "nothing in common" in refused(tmp_path / "1", tmp_path / "2", "--out", "out", cwd=tmp_path)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8))
    damaged = tmp_path / "s" / "1-4" / "seed1_steps4.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert "seed1_steps4.png" in refused("s", cwd=tmp_path)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a place nobody can write to")
def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    sweep(tmp_path, 2, (4, 8))
    done = run(tmp_path, "--out", "/proc/report", cwd=tmp_path)
    assert done.status == 1
    assert "could not be written" in done.err and len(done.err.splitlines()) == 1


def test_neither_torch_nor_mlflow_is_imported(tmp_path: Path) -> None:
    """Of the pictures of a sweep either, if it was not tracked, though there is a store."""
    for path in sweep(tmp_path / "s", 2, (4, 8)):
        job(path.parent, path, read_record(path), sweep="0123456789abcdef")
    (tmp_path / "s" / "sweep.json").write_text('{"identity": "0123456789abcdef"}')
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "mlflow.db").write_bytes(b"")
    code = (
        "import sys; from diffuse.cli import main as cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, [m for m in ('torch', 'mlflow', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "compare", "s"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
