"""Rates: their table, their file, and the seconds that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffuse.device.hardware import Hardware
from diffuse.device.host import cpu_name
from diffuse.errors import ConfigError
from diffuse.plan import rates
from diffuse.plan.predict import ComponentPlan, PhasePlan, Prediction, Work


def prediction(streamed: int = 0) -> Prediction:
    component = ComponentPlan("unet", "denoiser", 10, 20, "float16", "device", True, 3, 1, streamed)
    encoder = ComponentPlan("text_encoder", "text encoder", 10, 40, "float32", "host", False)
    work = PhasePlan("denoise", 1, 1, (Work("unet", 10, 4 * 10**12),))
    return Prediction("cuda", 1, 10, (component, encoder), (work,))


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090"])
def test_cards_are_found_by_the_names_they_have(name: str) -> None:
    card, found = rates.card_rates(name)
    assert card.vram_gib == 24 and found.name == "RTX 4090" and found.tflops["float16"] < card.half_tflops


def test_an_unknown_card_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="not known; these are: RTX 2080 Ti"):
        rates.card_rates("Voodoo")


def test_the_file_keeps_every_device(tmp_path: Path) -> None:
    file = tmp_path / "outputs" / "rates.json"
    assert rates.read_rates(file) == {}
    one, two = rates.Rates("one", {"float32": 1.5}), rates.Rates("two", {"float16": 9.0}, 12.5)
    for each in (one, two, one):
        rates.write_rates(each, file)
    assert rates.read_rates(file) == {"one": one, "two": two}
    assert [path.name for path in file.parent.iterdir()] == ["rates.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 3}', '{"a": {"nme": "a"}}', "\xff"])
def test_a_damaged_file_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "rates.json").write_text(text, encoding="latin-1")
    assert rates.read_rates(tmp_path / "rates.json") == {}


def test_this_machine_is_measured() -> None:
    found = rates.measure_rates(Hardware("cpu", name="here"))
    assert found.name == "here (cpu)" and set(found.tflops) == {"float32", "bfloat16"} and found.copy_gb_s is None
    assert all(tflops > 1e-4 for tflops in found.tflops.values())


def test_seconds_are_those_of_the_arithmetic_or_of_the_copies() -> None:
    device = rates.Rates("card", {"float16": 2.0}, 10.0)
    assert rates.predicted_seconds(prediction(), device, None)[0] == {"denoise": 2.0}
    assert rates.predicted_seconds(prediction(streamed=5 * 10**9), device, None)[0] == {"denoise": 5.0}


@pytest.mark.parametrize("found", [None, rates.Rates("card", {"float32": 1.0})])
def test_without_a_rate_it_says_what_to_do(found: rates.Rates | None) -> None:
    seconds, reason = rates.predicted_seconds(prediction(), found, found)
    assert not seconds and reason is not None
    assert reason.startswith("how fast the card computes in float16 is not known: run diffuse doctor --measure")


def test_the_processor_and_the_card_of_one_chip_have_rates_each(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    kept = {}
    for device in ("cpu", "mps", "cuda"):
        kept[device] = rates.Rates(rates.device_name(Hardware(device, name=cpu_name())), {"float32": 1.0})
        rates.write_rates(kept[device], file)
    assert len(rates.read_rates(file)) == 3 and rates.main_memory_rates(rates.read_rates(file)) == kept["cpu"]
    assert rates.device_name(Hardware("mps")) == "mps"
