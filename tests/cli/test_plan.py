"""`diffuse plan`: what a command would take, without weights, and without making anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Done, diffuse
from sweeps import QUICK, swept

from diffuse.config.compose import compose_config
from diffuse.device.hardware import Hardware
from diffuse.device.host import cpu_name
from diffuse.errors import ConfigError, HardwareError
from diffuse.plan.make_plan import open_setting
from diffuse.plan.rates import RATES_FILE, Rates, device_name, write_rates
from diffuse.tiny import layout

TINY = Path(layout.__file__).parent / "checkpoint"


def planned(*arguments: Any, cwd: Path, status: int = 0) -> Done:
    """What `diffuse plan` says; the folder is as before."""
    before = {path: path.stat().st_mtime_ns for path in cwd.rglob("*")}
    done = diffuse("plan", *arguments, cwd=cwd)
    assert done.status == status, done.err
    assert {path: path.stat().st_mtime_ns for path in cwd.rglob("*")} == before
    return done


def values(*arguments: Any, cwd: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(planned("--json", *arguments, cwd=cwd).out)
    return result


def without_weights(folder: Path) -> Path:
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_a_request_on_a_planned_card(tmp_path: Path) -> None:
    plan = values("hardware.vram_gb=4", "num_images=2", cwd=tmp_path)
    assert plan["fits"] and plan["levers"] == ["everything stays on the device"] and plan["batch_size"] > 1
    assert [phase["name"] for phase in plan["phases"]] == ["encode", "denoise", "decode"]
    assert {component["dtype"] for component in plan["components"]} == {"bfloat16"}
    assert plan["device_bytes"] == max(phase["device_bytes"] for phase in plan["phases"])
    assert plan["download_bytes"] == 0 and plan["disk_bytes"] > 18e6 and plan["sizes_are_exact"]
    assert plan["seconds"] is None
    peaks = [budget["device_bytes"] for budget in plan["budgets"]]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks) > 2
    assert not values("hardware.vram_gb=0.5", "memory_profile=full_gpu", cwd=tmp_path)["fits"]


def test_a_budget_chooses_levers(tmp_path: Path) -> None:
    small = values("hardware=cpu", "memory_profile.budget_gib=0.02", cwd=tmp_path)
    assert small["levers"][:2] == ["cleanup=phases", "streamed=['*']"] and small["memory_profile"] == "budget"
    assert 0.015 * 2**30 < small["device_bytes"] <= 0.02 * 2**30
    line = planned("hardware=cpu", "memory_profile.budget_gib=0.02", cwd=tmp_path).out.splitlines()[2]
    assert line.startswith("memory_profile within 0.02 GiB of the device: cleanup=phases streamed=['*']")


def test_the_lines(tmp_path: Path) -> None:
    text = planned("--card", "RTX 4090", "memory_profile=streaming", cwd=tmp_path).out
    for expected in ("1 picture, 64 x 64, 20 steps, memory_profile=streaming on RTX 4090", "blocks stream, 0 stay"):
        assert expected in text
    assert "fits 24.00 GiB" in text and "by the rates of RTX 4090" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "run diffuse doctor --measure" in planned("hardware=cpu", cwd=tmp_path).out


def test_a_size_that_the_profile_refuses_is_planned(tmp_path: Path) -> None:
    plan = values("hardware=cpu", "memory_profile.max_side=32", "num_inference_steps=1", cwd=tmp_path)
    assert plan["fits"] is None and plan["refused"].startswith("64 x 64 is more than memory_profile=")
    text = planned("hardware=cpu", "memory_profile.max_side=32", "num_inference_steps=1", cwd=tmp_path).out
    assert "refused      64 x 64 is more than memory_profile=" in text and "1 step," in text
    assert max(len(line) for line in text.splitlines() if line.startswith("refused")) <= 100
    assert "nothing to download" in text and " TFLOP, " in text and " 0.000 " not in text


def test_no_weights_are_needed(tmp_path: Path) -> None:
    folder = without_weights(tmp_path / "model")
    bare = values("model=sd21", f"model.source={folder}", "num_inference_steps=20", cwd=tmp_path)
    whole = values("model=sd21", f"model.source={TINY}", "num_inference_steps=20", cwd=tmp_path)
    assert bare["host_bytes"] == whole["host_bytes"] and bare["components"] == whole["components"]
    assert not bare["sizes_are_exact"] and bare["download_bytes"] > 18e6 and whole["download_bytes"] == 0


def test_a_prompt_file_and_a_refused_one(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cactus\na rocket\n")
    plan = values("prompt_file=prompts.txt", cwd=tmp_path)
    assert (plan["jobs"], plan["to_make"], plan["pictures"], plan["texts"]) == (2, 2, 2, 3)


def test_a_sweep(tmp_path: Path) -> None:
    swept("num_inference_steps=1", "seed=1,2", cwd=tmp_path)
    arguments = ("-m", *QUICK, "num_inference_steps=1,2", "seed=2,3,2", "clip_skip=null,1")
    plan = values(*arguments, cwd=tmp_path)
    assert (plan["jobs"], plan["double"], plan["wrong"]) == (12, 4, 0)
    assert plan["there"] + plan["to_make"] == 8 and plan["texts"] == 2
    assert plan["there"] == 1  # of seed 2, with one step and without skipping
    one, two = (values(f"num_inference_steps={count}", "hardware=cpu", cwd=tmp_path) for count in (1, 2))
    assert plan["pflop"] > one["pflop"] + two["pflop"]
    assert plan["hours"] is None and plan["media_bytes"] > 0


def test_a_sweep_counts_prompts_that_cost_more(tmp_path: Path) -> None:
    """They are read in chunks here, or have weights."""
    long = ("long_prompt=chunk", f'prompt=choice(a,"{"b " * 200}")')
    plan = values("-m", "hardware=cpu", "num_inference_steps=1", "seed=1", *long, cwd=tmp_path)
    one = values("hardware=cpu", "num_inference_steps=1", "seed=1", "long_prompt=chunk", "prompt=a", cwd=tmp_path)
    assert plan["pflop"] > 2.1 * one["pflop"]


def test_a_sweep_with_rates(tmp_path: Path) -> None:
    here = device_name(Hardware("cpu", name=cpu_name()))
    write_rates(Rates(here, {"float32": 0.1}), tmp_path / RATES_FILE)
    plan = values("-m", "hardware=cpu", "seed=1,2", "num_inference_steps=3", cwd=tmp_path)
    one = values("hardware=cpu", "num_inference_steps=3", cwd=tmp_path)
    assert plan["hours"] * 3600 == pytest.approx(2 * one["seconds"])
    assert one["seconds"] == pytest.approx(one["pflop"] * 1e4)
    assert "time" in planned("-m", "hardware=cpu", "seed=1,2", cwd=tmp_path).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "Voodoo 2"], "--card Voodoo 2: is not known"),
        (["--card"], "which card?"),
        (["--jsn"], "no such option"),
        (["hardware.vram_gb=0"], "must be more than 0"),
        (["hardware.vram_gb=-3"], "must be more than 0"),
        (["hardware.vram_gb=nan"], "must be more than 0"),
        (["memory_profile=huge"], "no such memory_profile"),
        (["memory_profile.on_device=[nut]"], "names nut"),
        (["width=63"], "multiple of 8"),
        (["-m", "hardware=cpu", "memory_profile.max_side=32", "seed=1,2"], "meant for"),
        (["model=sdxl_turbo", "model.download=never"], "its settings are not here, and model.download=never"),
        (["model=sdxl_turbo"], "add model.download=yes"),
        (["model=sd21", "model.source=/nowhere/at/all"], "does not exist"),
        (["experiment=smoke"], "leave it out"),
        (["experiment=tune_guidance"], "chooses each job"),
        (["-m", "hardware=cpu", "width=63", "seed=1,2"], "width=63: should be a multiple of 8"),
        (["-m", "--json", "hardware=cpu", "num_inference_steps=1", "width=63"], "width=63: should be a multiple of 8"),
        (["-m", "memory_profile.on_device=[nut]", "seed=1,2"], "names nut"),
        (["--card", "T4", "hardware.dtype=bfloat16"], "needs compute capability 8.0 and the T4 has 7.5"),
        (["--card", "T4", "hardware=cpu"], "leave one out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_for_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = planned(*arguments, cwd=tmp_path, status=2)
    assert message in done.err and done.err.count("\n") == 1 and not done.out


def test_wrong_jobs_are_reported_and_the_others_planned(tmp_path: Path) -> None:
    done = planned("-m", "hardware=cpu", "width=64,63", "seed=1", cwd=tmp_path, status=2)
    assert "width=63" in done.err and "1 to make" in done.out


def test_jobs_that_are_wrong_each_in_its_way_have_no_totals(tmp_path: Path) -> None:
    done = planned("-m", "hardware=cpu", "width=63,65", "seed=1", cwd=tmp_path, status=2)
    assert not done.out and "width=63" in done.err and "width=65" in done.err and "2 of the sweep's jobs" in done.err


def test_a_sweep_of_sources_that_auto_reads(tmp_path: Path) -> None:
    """The list of them was taken for one folder."""
    one, two = (without_weights(tmp_path / name) for name in ("one", "two"))
    shared = ("-m", "hardware=cpu", "num_inference_steps=1", "seed=1", "prompt=x")
    for sources in (f"{one},{two}", f"choice({one},{two})", f"glob({tmp_path}/*)"):
        assert values(*shared, "model=auto", f"model.source={sources}", cwd=tmp_path)["to_make"] == 2
    assert values(*shared, "model=auto", f"model.source={one}", cwd=tmp_path)["to_make"] == 1
    assert values(*shared, "model=auto,tiny", f"model.source={one}", cwd=tmp_path)["to_make"] == 2


def test_nothing_is_fetched_to_find_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's consent is to what a plan needs, and that is no weights."""
    from diffuse.run import prepare

    swept("num_inference_steps=1", "seed=1", cwd=tmp_path)
    asked: list[Any] = []
    locate = prepare.locate_weights
    monkeypatch.setattr(prepare, "locate_weights", lambda cfg: [asked.append(cfg.model.download.name), locate(cfg)][1])
    shared = ("-m", *QUICK, "num_inference_steps=1", "seed=1")
    for consent in ("--yes", "model.download=yes", "model.download=ask"):
        assert values(*shared, consent, cwd=tmp_path)["there"] == 1
    assert asked == ["never"] * 3


def test_where_there_is_nothing_to_make_and_where_there_is_no_card(tmp_path: Path) -> None:
    swept("num_inference_steps=1", "seed=1", cwd=tmp_path)
    done = planned("-m", *QUICK, "num_inference_steps=1", "seed=1", cwd=tmp_path)
    assert done.out.splitlines() == ["jobs         1: 1 are there, 0 to make"]
    shared = ("-m", "num_inference_steps=1", "seed=1,2")
    on_cpu, on_card = (planned(*shared, device, cwd=tmp_path).out for device in ("hardware=cpu", "hardware.vram_gb=4"))
    assert "device  " not in on_cpu and "main memory" in on_cpu and "device  " in on_card
    assert "how fast this processor computes in float32 is not known" in on_cpu


def test_the_kind_of_plan_is_said(tmp_path: Path) -> None:
    assert values("hardware=cpu", cwd=tmp_path)["kind"] == "request"
    assert values("-m", "hardware=cpu", "seed=1,2", cwd=tmp_path)["kind"] == "sweep"


def test_a_card_has_its_own_formats() -> None:
    """Whatever device is here, and also where `hardware=cuda` finds none."""

    def dtypes(card: str, *overrides: str) -> set[str]:
        setting = open_setting(compose_config(["prompt=x", *overrides]), card)
        return {str(setting.hw.half(setting.cfg.model.half_dtype).value), setting.hw.device, str(setting.hw.capability)}

    assert dtypes("T4") == {"float16", "cuda", "(7, 5)"}
    assert dtypes("RTX 2080 Ti", "hardware=cuda") == {"float16", "cuda", "(7, 5)"}
    assert dtypes("L4") == {"bfloat16", "cuda", "(8, 9)"}
    assert "float16" in dtypes("T4", "hardware.dtype=float16")
    assert open_setting(compose_config(["prompt=x", "hardware.vram_gb=6"]), "A100").hw.vram_total_gib == 6
    with pytest.raises(HardwareError, match=r"RTX 2080 Ti has 7\.5"):
        dtypes("RTX 2080 Ti", "hardware.dtype=bfloat16")
    with pytest.raises(ConfigError, match="hardware=cpu for another device"):
        dtypes("T4", "hardware=cpu")


def test_a_budget_is_for_a_card_unless_the_processor_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def device(*overrides: str) -> str:
        return open_setting(compose_config(["prompt=x", "hardware.vram_gb=4", *overrides])).hw.device

    assert device("hardware=cpu") == "cpu" and device() == "cuda"
    assert device("hardware.dtype=float16") == "cuda"
    with pytest.raises(HardwareError, match="on a CPU"):
        device("hardware=cpu", "hardware.dtype=float16")
    assert "a card" not in planned("hardware=cpu", "hardware.vram_gb=4", cwd=tmp_path).out
    assert " on a card of 4 GiB" in planned("hardware.vram_gb=4", cwd=tmp_path).out
