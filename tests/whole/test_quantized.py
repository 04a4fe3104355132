"""Weights in fewer bits: the same pixels under every profile, bytes as planned, LoRA, records and refusals."""

from __future__ import annotations

from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf_files
import ldm_files
import lora_files
import numpy as np
import pytest
import small_checkpoints
from lora_files import LoraMaker
from safetensors.torch import save_file

import diffuse
from diffuse.compare.cells import build_cell
from diffuse.config.compose import compose_config
from diffuse.config.groups import load_group
from diffuse.config.request import draft_requests
from diffuse.convert.checkpoint_content import open_content
from diffuse.errors import ConfigError
from diffuse.plan.make_plan import make_plan, open_setting
from diffuse.record.differences import record_differences
from diffuse.record.recorded_run import read_recorded_run
from diffuse.reproduce.reproduction import build_reproduction
from diffuse.run.prepare import prepare
from diffuse.run.run import compute
from diffuse.schema import Storage

TINY = Path(diffuse.__file__).parent / "tiny" / "checkpoint"
PROFILES = {
    "full_gpu": ("memory_profile=full_gpu",),
    "streaming": ("memory_profile=streaming", "memory_profile.resident_blocks=3"),
    "disk": ("memory_profile=streaming", "memory_profile.release_to=disk"),
    "cpu_only": ("memory_profile=cpu_only", "memory_profile.guidance=batched"),
}
RUN = ("hardware=cpu", "hardware.threads=1", "num_inference_steps=1", "seed=3", "prompt=an apple", "tracking=none")


def made(*overrides: str) -> diffuse.Generation:
    fields: dict[str, Any] = {
        "num_inference_steps": 1,
        "seed": 3,
        "hardware": "cpu",
        "progress": False,
        "width": 32,
        "height": 32,
    }
    return diffuse.txt2img("an apple", overrides=list(overrides), **fields)


def storage(name: str) -> str:
    return f"memory_profile.storage={name}"


@pytest.fixture(scope="module")
def runs() -> dict[str, diffuse.Generation]:
    """A picture in each storage, made with everything on the device."""
    return {name: made(*PROFILES["full_gpu"], storage(name)) for name in ("full", "int8", "fp8", "nf4")}


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "full_gpu"])
def test_the_same_pixels_under_every_profile(profile: str, runs: dict[str, diffuse.Generation]) -> None:
    for name in ("fp8", "nf4") if profile == "streaming" else ("fp8",):
        run = made(*PROFILES[profile], storage(name))
        assert np.array_equal(run.frames, runs[name].frames)
        assert run.record["quantized"] == runs[name].record["quantized"]


@pytest.mark.parametrize(("name", "levels"), [("int8", 3), ("fp8", 8), ("nf4", 40)])
def test_pictures_change_by_a_little(name: str, levels: int, runs: dict[str, diffuse.Generation]) -> None:
    stored = runs[name].record["quantized"]
    assert stored.keys() == {"unet", "text_encoder"} and {each["storage"] for each in stored.values()} == {name}
    assert "quantized" not in runs["full"].record
    distance = np.abs(runs[name].frames.astype(int) - runs["full"].frames)
    assert distance.max() > 0 and distance.mean() < levels


def test_bytes_are_those_that_were_planned() -> None:
    name = "nf4"
    overrides = [*RUN, *PROFILES["full_gpu"], storage(name)]
    cfg = compose_config(overrides)
    draft = draft_requests(cfg)[0]
    plan = make_plan(open_setting(cfg), draft)
    prepared = prepare(cfg, draft)
    compute([prepared])
    planned = {each.name: each for each in plan.prediction.components}
    for component, managed in prepared.opened.pipeline.memory._components.items():
        tensors = [*managed.module.parameters(), *managed.module.buffers()]
        assert planned[component].nbytes == sum(each.nbytes for each in tensors), component
    unet = planned["unet"]
    assert unet.storage == name and unet.nbytes < 0.3 * unet.full_bytes == 0.3 * 4 * unet.parameters
    assert planned["vae"].storage == "full" and planned["vae"].full_bytes is None
    (line,) = [line for line in plan.lines() if line.startswith("storage")]
    assert name in line and "(text_encoder, unet)" in line
    assert not any("faster" in line for line in plan.lines())


def test_no_profile_and_no_budget_chooses_it() -> None:
    assert {profile.storage for profile in load_group("memory_profile").values()} == {Storage.full}
    cfg = compose_config([*RUN, "width=32", "height=32", "memory_profile.budget_gib=0.03", storage("int8")])
    profile = prepare(cfg, draft_requests(cfg)[0]).opened.profile
    assert (profile.name, profile.storage) == ("budget", Storage.int8), "what the user set stays"


def test_a_lora_is_kept_beside_the_codes(tmp_path: Path) -> None:
    file = lora_files.write(tmp_path / "a.safetensors", lora_files.kohya(LoraMaker(TINY)))
    lora = f"lora={file}:0.5"
    own = (*PROFILES["full_gpu"], storage("int8"))
    before, changed, after = (made(*own, *more).frames for more in ((), (lora,), ()))
    assert np.array_equal(before, after) and not np.array_equal(before, changed)
    own = (*PROFILES["streaming"], storage("int8"))
    assert np.array_equal(made(*own, lora).frames, changed)
    assert np.array_equal(made(*own).frames, before)
    merged = made(*PROFILES["full_gpu"], lora).frames
    assert np.abs(merged.astype(int) - changed).mean() < 3


def test_a_record_knows_how_weights_were_stored(tmp_path: Path, runs: dict[str, diffuse.Generation]) -> None:
    (path,) = runs["nf4"].save(tmp_path)
    recorded = read_recorded_run(path)
    again = build_reproduction(recorded).cfg
    assert again.memory_profile.storage.value == "nf4"
    for more, storage in ((), "nf4"), (("memory_profile.storage=full",), "full"):
        other = build_reproduction(recorded, ["memory_profile=streaming", *more]).cfg.memory_profile
        assert (other.name, other.storage.value) == ("streaming", storage)
    assert build_cell(path, recorded.record).weights_errors == pytest.approx(
        {"unet": 0.092, "text_encoder": 0.091}, abs=2e-3
    )
    plain = {**recorded.record, "hardware": {**recorded.record["hardware"], "memory_profile": {"name": "full_gpu"}}}
    lines = [line for line in record_differences(plain, recorded.record) if "storage" in line]
    assert lines == ["memory_profile.storage: full then, nf4 now"]


def test_a_gguf_file_is_a_unet(tmp_path: Path) -> None:
    """The picture is that of the weights as ggml's package reads them."""
    folder = small_checkpoints.build(tmp_path / "sd2", "sd2")
    model = ("model=auto", f"model.source={folder}")
    unet = ldm_files.component(folder, "unet")
    unet = ldm_files.renamed(unet, ldm_files.unet_modules(ldm_files.config(folder, "unet")))
    kinds = dict(zip([key for key in unet if unet[key].ndim > 1], cycle(("Q8_0", "Q5_1", "F16")), strict=False))
    meant = gguf_files.write(tmp_path / "a.gguf", unet, kinds, "sd1")
    save_file(meant, tmp_path / "a.safetensors")
    runs = [made(*model, f"model.unet.source={tmp_path / name}") for name in ("a.gguf", "a.safetensors")]
    assert np.array_equal(runs[0].frames, runs[1].frames)
    weights = runs[0].record["weights"]["components"]["unet"]
    assert weights["sha256"] == sha256((tmp_path / "a.gguf").read_bytes()).hexdigest()
    again = made(*model, f"model.unet.source={tmp_path / 'a.gguf'}", "memory_profile=streaming", storage("int8"))
    assert np.abs(again.frames.astype(int) - runs[0].frames).mean() < 3
    cfg = compose_config(["model=sd21", *model[1:], f"model.unet.source={tmp_path / 'a.gguf'}"])
    with pytest.raises(ConfigError, match=r"a\.gguf: holds weights in fewer bits .*--precision"):
        open_content(cfg, None)
    halves = open_content(cfg, "F16").tensors["unet"]
    assert {tensor.dtype for tensor in halves} == {"F16"}


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"memory_profile\.storage.*fp8"):
        made("memory_profile=full_gpu", storage("fp4"))
    with pytest.raises(ConfigError, match="does not compile layers whose weights are stored in fewer bits"):
        made("memory_profile=full_gpu", storage("int8"), "hardware.compile=regional")
