"""The table of a report."""

from __future__ import annotations

from pathlib import Path

import pytest
from compared import pixels, read_table, sweep

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
