"""The claim on a sweep's folder: who has it, and who stops when it goes."""

from __future__ import annotations

from pathlib import Path

from command import until

from diffuse.sweep.claim import CLAIM_FILE, claim_folder, current_claim, release_folder, watch_claim
from diffuse.sweep.interrupt import Interruption


def test_a_claim_is_taken_over_and_released(tmp_path: Path) -> None:
    assert current_claim(tmp_path) == ""
    claim_folder(tmp_path)
    first = current_claim(tmp_path)
    claim_folder(tmp_path)
    assert first and current_claim(tmp_path) not in ("", first)
    assert [path.name for path in tmp_path.iterdir()] == [CLAIM_FILE] == [".start"]
    release_folder(tmp_path)
    release_folder(tmp_path)
    assert current_claim(tmp_path) == ""


def test_a_worker_stops_when_the_claim_is_no_longer_its_own(tmp_path: Path) -> None:
    claim_folder(tmp_path)
    interruption = Interruption()
    with watch_claim(tmp_path, current_claim(tmp_path), interruption):
        interruption.check()
        claim_folder(tmp_path)
        until(lambda: interruption.requested)


def test_a_worker_of_a_command_that_had_ended_stops_at_once(tmp_path: Path) -> None:
    interruption = Interruption()
    with watch_claim(tmp_path, current_claim(tmp_path), interruption):
        until(lambda: interruption.requested)
