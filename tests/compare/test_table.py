"""The table of a report."""

from __future__ import annotations

from pathlib import Path

import pytest
from compared import job, pixels, read_table, record, save, sweep

from diffuse.compare import metrics
from diffuse.compare.report import compare_folder


def test_the_table_measures_against_the_most_steps(tmp_path: Path) -> None:
    sweep(tmp_path / "s", 2, (4, 8, 16))
    report = compare_folder(tmp_path / "s")[0].parent
    rows = read_table(report)
    assert [(row["num_inference_steps"], row["seed"]) for row in rows[:2]] == [("4", "0"), ("4", "1")]
    for row in rows:
        seed, steps = int(row["seed"]), int(row["num_inference_steps"])
        assert (report / row["file"]).resolve() == (tmp_path / "s" / f"{seed}-{steps}" / f"seed{seed}_steps{steps}.png")
        assert row["reference"] == f"../{seed}-16/seed{seed}_steps16.png"
        assert float(row["seconds"]) == pytest.approx(0.1 * steps)
        if steps == 16:
            assert (row["psnr_db"], row["ssim"], row["flip"]) == ("", "", "")
        else:
            expected = metrics.measure_difference(pixels(seed, steps), pixels(seed, 16))
            assert expected is not None and expected.ssim is not None
            assert float(row["psnr_db"]) == pytest.approx(expected.psnr, rel=1e-5)
            assert float(row["ssim"]) == pytest.approx(expected.ssim, rel=1e-5)
            assert float(row["flip"]) == pytest.approx(expected.flip, rel=1e-5)


def test_the_error_of_stored_weights_has_a_column_where_there_is_one(tmp_path: Path) -> None:
    for steps in (4, 8):
        path = save(tmp_path / "s" / str(steps), 1, steps)
        about = record(1, steps)
        if steps == 8:
            about["quantized"] = {"unet": {"storage": "nf4", "relative_error": 0.09187}, "odd": {"relative_error": "x"}}
        job(path.parent, path, about)
    rows = read_table(compare_folder(tmp_path / "s")[0].parent)
    assert [row["weights_error"] for row in rows] == ["", "unet=0.09187"]
    sweep(tmp_path / "full", 1, (4,))
    assert "weights_error" not in read_table(compare_folder(tmp_path / "full")[0].parent)[0]
