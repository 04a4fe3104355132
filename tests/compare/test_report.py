"""A report from its arguments to its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import smoke
from compared import compare, job, read_table, refused, save, sweep

from diffuse.media.load import read_record


def test_everything_is_written_and_printed(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 3, (4, 8, 16))
    done = compare("s", cwd=tmp_path)
    assert done.status == 0, done.err
    names = [path.name for path in done.paths]
    assert names == ["report.html", "table.csv", "quality_by_steps.png", *names[3:]]
    assert names[3:] == ["seconds_by_steps.png", "sheet.png"]
    assert {path.parent for path in done.paths} == {Path("s", "report")}
    assert sorted(path.name for path in (tmp_path / "s" / "report").iterdir()) == sorted(names)


def test_one_picture_is_compared_too(tmp_path: Path) -> None:
    save(tmp_path, 1, 4)
    assert compare("seed1_steps4.png", "--out", "out", "--no-sheets", cwd=tmp_path).paths == [
        Path("out/report.html"),
        Path("out/table.csv"),
    ]


def test_folders_and_files_are_mixed_and_each_counts_once(tmp_path: Path) -> None:
    sweep(tmp_path / "a", 2, (4, 8))
    other = save(tmp_path / "b", 9, 4)
    done = compare("a", "a/0-4/seed0_steps4.png", other, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.status == 0, done.err
    assert len(read_table(tmp_path / "out")) == 5


def test_a_report_replaces_its_predecessor_and_nothing_else(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8))
    out = tmp_path / "out"
    out.mkdir()
    mine = save(out, 0, 4, name="sheet_music")
    (out / "table.csv").write_text("mine")
    assert "table.csv is there already" in refused("s", "--out", "out", cwd=tmp_path)
    (out / "table.csv").unlink()
    assert compare("s", "--out", "out", cwd=tmp_path).status == 0
    assert (out / "sheet.png").exists() and mine.exists()
    assert compare("s", "--out", "out", "--no-sheets", cwd=tmp_path).status == 0
    assert not (out / "sheet.png").exists() and mine.exists()


def test_a_report_of_what_diffuse_really_made(tmp_path: Path) -> None:
    for seed in (1, 2):
        smoke(f"seed={seed}", "num_images=2", f"output.dir=r/{seed}", f"num_inference_steps={seed}", cwd=tmp_path)
    done = compare("r", "--x", "steps", cwd=tmp_path)
    assert done.status == 0, done.err
    rows = read_table(tmp_path / "r" / "report")
    assert [(row["seed"], row["num_inference_steps"]) for row in rows] == [
        ("1", "1"),
        ("2", "1"),
        ("2", "2"),
        ("3", "2"),
    ]
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert [bool(row["ssim"]) for row in rows] == [False, True, False, False]


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a place nobody can write to")
def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    sweep(tmp_path, 2, (4, 8))
    done = compare(tmp_path, "--out", "/proc/report", cwd=tmp_path)
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
