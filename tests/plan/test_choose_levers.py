"""The levers that a budget chooses: in which order, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from real_bytes import RealBytes
from saved_images import pixels
from sweeps import swept

from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.groups import load_group
from diffuse.config.request import draft_requests
from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.errors import ConfigError
from diffuse.plan.choose_levers import Choice, choose_levers
from diffuse.plan.make_plan import Setting, open_setting
from diffuse.plan.predict import complete_request, predict
from diffuse.run.open import close_pipeline
from diffuse.run.prepare import prepare
from diffuse.run.run import compute, generate
from diffuse.schema import Cleanup, Compile, Determinism, GuidanceMode, ReleaseTo
from diffuse.sweep.job_folder import job_identity

BASE = ["hardware=cpu", "hardware.threads=1", "tracking=none", "prompt=a cactus", "seed=1", "num_inference_steps=1"]


@pytest.fixture(scope="module")
def setting() -> Setting:
    return open_setting(compose_config(BASE))


def choose(setting: Setting, *overrides: str, hw: Hardware | None = None) -> Choice:
    cfg = compose_config([*BASE, *overrides])
    hw = hw or replace(setting.hw, planned=cfg.hardware.vram_gb is not None, vram_total_gib=cfg.hardware.vram_gb)
    request = complete_request(cfg, draft_requests(cfg)[0], hw, setting.checkpoints)
    named: Any = OmegaConf.to_object(cfg.memory_profile)
    return choose_levers(cfg, request, named, load_group("memory_profile"), hw, setting.checkpoints)


def least(setting: Setting, *overrides: str) -> float:
    with pytest.raises(ConfigError, match=r"the least that works is [0-9.]+ GiB") as refusal:
        choose(setting, *overrides)
    return float(str(refusal.value).split("least that works is ")[1].split(" GiB")[0])


def test_levers_come_in_their_order(setting: Setting) -> None:
    """Those that change no bit first; and the least that is named works, where a little less does not."""
    many = "num_images=4"
    floor = least(setting, many, "memory_profile.budget_gib=1e-4")
    budgets = [1, 0.0375, 0.02, 0.01, floor + 3e-4, floor]
    profiles = [choose(setting, many, f"memory_profile.budget_gib={each}").profile for each in budgets]
    with pytest.raises(ConfigError, match="the least that works"):
        choose(setting, many, f"memory_profile.budget_gib={0.99 * floor}")
    everything, phases, some, fewer, none, last = profiles
    assert everything.cleanup is Cleanup.none and not everything.streamed
    assert phases.cleanup is Cleanup.phases and not phases.streamed
    assert some.streamed == ["*"] and some.resident_blocks > fewer.resident_blocks > none.resident_blocks
    assert last.guidance is GuidanceMode.sequential or last.batch_size == 1
    for each in (everything, phases, some, fewer):
        assert (each.guidance, each.batch_size, each.tiled_decode) == (GuidanceMode.batched, 4, False)
    for each in profiles:
        assert each.half and each.release_to is ReleaseTo.host and each.name == "budget"


def test_strict_runs_have_nothing_to_gain_from_small_batches(setting: Setting) -> None:
    hw = replace(setting.hw, deterministic=Determinism.strict)
    choice = choose(setting, "num_images=4", "memory_profile.budget_gib=0.006", hw=hw)
    assert choice.profile.guidance is GuidanceMode.batched and choice.profile.batch_size == 4


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ("cleanup=phases", "cleanup", Cleanup.phases),
        ("streamed=[unet]", "streamed", ["unet"]),
        ("resident_blocks=3", "resident_blocks", 3),
        ("guidance=sequential", "guidance", GuidanceMode.sequential),
        ("batch_size=1", "batch_size", 1),
        ("tiled_decode=true", "tiled_decode", True),
        ("max_side=64", "max_side", 64),
        ("cleanup_every=1", "cleanup_every", 1),
    ],
)
def test_what_the_user_set_stays(setting: Setting, given: str, field: str, value: object) -> None:
    both = "num_images=2", f"memory_profile.{given}"
    profile = choose(setting, *both, "memory_profile.budget_gib=0.02").profile
    assert getattr(profile, field) == value


@pytest.mark.parametrize("given", ["cleanup=none", "streamed=[]", "guidance=batched"])
def test_what_the_user_set_to_a_value_of_auto_stays(setting: Setting, given: str) -> None:
    """Within a budget that only just works, every lever is taken that may be."""
    name, value = given.split("=")
    both = "num_images=1", f"memory_profile.{given}"
    floor = least(setting, *both, "memory_profile.budget_gib=1e-4")
    assert least(setting, both[0], "memory_profile.budget_gib=1e-4") < floor
    kept = getattr(choose(setting, *both, f"memory_profile.budget_gib={floor}").profile, name)
    assert {"none": Cleanup.none, "[]": [], "batched": GuidanceMode.batched}[value] == kept


def test_a_card_needs_room_for_itself(setting: Setting) -> None:
    card = replace(setting.hw, device="cuda", vram_total_gib=24.0, vram_free_gib=24.0, capability=(8, 9), planned=True)
    assert choose(setting, "memory_profile.budget_gib=0.6", hw=card).device_bytes > GIB / 2
    with pytest.raises(ConfigError, match="is too little for 64 x 64"):
        choose(setting, "memory_profile.budget_gib=0.5", hw=card)
    with pytest.raises(ConfigError, match=r"budget_gib=25: is more than there is; the device has 24 GiB \(hardware"):
        choose(setting, "memory_profile.budget_gib=25", hw=card)
    with pytest.raises(ConfigError, match="with cleanup=phases") as refusal:
        choose(setting, "memory_profile.budget_gib=0.51", hw=replace(card, compile=Compile.regional))
    assert "streamed" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["budget_gib=0"], "budget_gib=0: should be a number of GiB above 0"),
        (["budget_gib=-2"], "budget_gib=-2: should be"),
        (["budget_gib=nan"], "budget_gib=nan: should be"),
        (["budget_gib=inf"], "budget_gib=inf: should be"),
        (["budget_gib=six"], "budget_gib=six: 'six' is not a number"),
        (["budget_gib=6GB"], "budget_gib"),
        (["budget_gib=1e6"], "budget_gib=1e\\+06: is more than there is; the device has"),
        (["host_gib=0"], "host_gib=0: should be a number of GiB above 0"),
        (["host_gib=nan"], "host_gib=nan: should be"),
        (["host_gib=1e6"], "host_gib=1e\\+06: is more than there is; there are .* of main memory"),
        (["host_gib=0.001"], "host_gib=0.001: is too little for 64 x 64; the least that works is .* release_to=disk"),
        (["budget_gib=0.001"], "budget_gib=0.001: is too little for 64 x 64; the least that works is .* streamed"),
        (["budget_gib=1", "on_device=[unett]"], "on_device names unett, which this model has not"),
        (["budget_gib=1", "streamed=[tokenizer]"], "streamed names tokenizer, which this model has not"),
        (["budget=6"], "memory_profile.budget"),
        (["release_to=tape"], "release_to=tape"),
        (["release_to=disk"], "release_to=disk has no effect without memory_profile.cleanup=phases"),
    ],
)
def test_what_cannot_be_is_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        cfg = compose_config([*BASE, *(f"memory_profile.{each}" for each in overrides)])
        prepare(cfg, draft_requests(cfg)[0])
    assert "\n" not in str(refusal.value)


def test_a_budget_under_a_named_profile_is_a_bound() -> None:
    cfg = compose_config([*BASE, "memory_profile=balanced", "memory_profile.budget_gib=0.02"])
    with pytest.raises(ConfigError, match=r"memory_profile=balanced takes 0.03.* GiB for 64 x 64; give that, or"):
        prepare(cfg, draft_requests(cfg)[0])
    cfg = compose_config([*BASE, "memory_profile=streaming", "memory_profile.budget_gib=0.02"])
    opened = prepare(cfg, draft_requests(cfg)[0]).opened
    assert opened.profile.name == "streaming" and opened.profile.budget_gib == 0.02


def test_the_hardware_states_a_budget_too(setting: Setting) -> None:
    choice = choose(setting, "hardware.vram_gb=0.03")
    assert choice.profile.streamed and choice.profile.budget_gib == 0.03
    with pytest.raises(ConfigError, match=r"hardware.vram_gb=0\.001: is too little"):
        choose(setting, "hardware.vram_gb=0.001")


def test_nothing_on_the_device_fits_any_budget(setting: Setting) -> None:
    choice = choose(setting, "memory_profile.on_device=[]", "memory_profile.budget_gib=0.001")
    assert choice.levers == ("nothing is on the device",) and choice.device_bytes == 0
    with pytest.raises(ConfigError, match=r"memory_profile.name=full_gpu: is the name of an option, which memory_pro"):
        compose_config(["memory_profile.name=full_gpu"])


def test_without_a_budget_what_is_free_decides(setting: Setting) -> None:
    """Nothing is enforced there, and what does not fit runs on the CPU. A stated budget, or a named one, goes first."""
    card = replace(setting.hw, device="cuda", vram_total_gib=24.0, vram_free_gib=0.54, capability=(8, 9))
    roomy, tight, full = (choose(setting, hw=replace(card, vram_free_gib=gib)) for gib in (0.6, 0.54, 0.4))
    assert roomy.levers == ("everything stays on the device",) and roomy.profile.budget_gib is None
    assert tight.profile.streamed == ["*"] and tight.device_bytes <= 0.54 * GIB
    line = tight.line()
    assert line.startswith("memory_profile=auto in 0.54 GiB free: cleanup=phases streamed=") and "\n" not in line
    assert (full.profile.name, full.levers, full.device_bytes) == ("cpu_only", ("cpu_only",), 0)
    assert full.line() == "memory_profile=auto in 0.4 GiB free: cpu_only; nothing fits there"
    assert choose(setting, "memory_profile.budget_gib=0.6", hw=card).levers == roomy.levers
    assert choose(setting, "memory_profile.tiled_decode=true", hw=replace(card, vram_free_gib=0.4)).profile.tiled_decode
    with pytest.raises(ConfigError, match=r"main memory|host_gib|is too little"):
        choose(setting, "memory_profile.host_gib=0.5", hw=replace(card, vram_free_gib=0.4))


def test_main_memory_is_kept_too() -> None:
    """Components whose phase is over are dropped, where they would not fit."""
    cfg = compose_config([*BASE, "memory_profile.host_gib=1"])
    kept = prepare(cfg, draft_requests(cfg)[0])
    assert kept.opened.choice is not None and kept.opened.profile.release_to is ReleaseTo.host
    assert kept.opened.choice.prediction.host_bytes > 0.035 * GIB
    cfg = compose_config([*BASE, "memory_profile.host_gib=0.035"])
    dropped = prepare(cfg, draft_requests(cfg)[0])
    assert dropped.opened.profile.release_to is ReleaseTo.disk
    with RealBytes() as mode:
        frames = [compute([dropped])[0].frames for _ in range(2)]
    close_pipeline(dropped.opened.pipeline)
    assert mode.peak <= 0.035 * GIB
    assert (compute([kept])[0].frames == frames[1]).all()
    close_pipeline(kept.opened.pipeline)


def test_what_is_dropped_takes_no_main_memory(setting: Setting) -> None:
    cfg = compose_config([*BASE, "memory_profile=balanced"])
    request = complete_request(cfg, draft_requests(cfg)[0], setting.hw, setting.checkpoints)
    kept: Any = OmegaConf.to_object(cfg.memory_profile)
    peaks = [
        predict(cfg, request, profile, hw=setting.hw, checkpoints=setting.checkpoints, repeated=True).host_bytes
        for profile in (kept, replace(kept, release_to=ReleaseTo.disk))
    ]
    assert peaks[1] < 0.9 * peaks[0]


def test_a_sweep_over_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job has its own levers and is a job of its own; all have the same pixels. None is made twice."""
    monkeypatch.chdir(tmp_path)
    budgets = "memory_profile.budget_gib=0.001,0.02,0.036"
    done = swept(*BASE[3:], budgets, "hardware.deterministic=strict", cwd=tmp_path, status=2)
    assert "budget_gib=0.001: is too little for 64 x 64; the least that works is" in done.err
    assert re.search("resident_blocks=[1-9]", done.err)  # how many: as linear layers are packed or not
    first, second = [tmp_path / path for path in done.paths]
    assert (pixels(first) == pixels(second)).all()
    again = swept(*BASE[3:], budgets, "hardware.deterministic=strict", cwd=tmp_path, status=2)
    assert again.paths == done.paths


def test_an_earlier_sweep_has_the_same_jobs() -> None:
    profiles = [
        job_identity(resolve_config(compose_config([*BASE, *more])))["memory_profile"]
        for more in ([], ["memory_profile.budget_gib=6"], ["memory_profile=balanced", "memory_profile.host_gib=6"])
    ]
    assert not {"budget_gib", "host_gib", "release_to"} & {*profiles[0]}
    assert profiles[1]["budget_gib"] == profiles[2]["host_gib"] == 6


def test_the_record_keeps_the_levers(tmp_path: Path) -> None:
    from diffuse.record.recorded_run import read_recorded_run
    from diffuse.reproduce.reproduction import build_reproduction

    overrides = [*BASE, "memory_profile.budget_gib=0.02", f"output.dir={tmp_path}"]
    cfg = compose_config(overrides)
    (made,) = generate(cfg, draft_requests(cfg), overrides=overrides, save=True)
    recorded = made.record["hardware"]
    assert recorded["levers"][:2] == ["cleanup=phases", "streamed=['*']"]
    profile = recorded["memory_profile"]
    assert profile["name"] == "budget" and profile["resident_blocks"] > 0 and profile["budget_gib"] == 0.02
    assert made.record["config"]["memory_profile"]["name"] == "auto"
    assert made.record["memory"]["predicted"]["rss_peak_gib"] > 0
    json.dumps(made.record)

    again = build_reproduction(read_recorded_run(made.paths[0]), ["tracking=none", f"output.dir={tmp_path / 'b'}"])
    opened = prepare(again.cfg, again.drafts[0]).opened
    assert opened.choice is None
    assert opened.profile == replace(opened.profile, resident_blocks=profile["resident_blocks"], streamed=["*"])
    (second,) = generate(again.cfg, again.drafts)
    assert [one["pixels_sha256"] for one in second.record["images"]] == [*again.digests.values()]
