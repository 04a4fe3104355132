"""LoRA files: what each spelling makes of the weights, whole pictures against diffusers, records, and sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import lora_files
import numpy as np
import oracle
import oracle_sdxl
import pytest
import torch
from lora_files import DIALECTS, LoraMaker
from picture_parity import assert_same

import diffuse
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.lora.locate_lora import NamedLora
from diffuse.checkpoints.lora.lora_file import LoraFile
from diffuse.compare.axes import find_axes
from diffuse.compare.cells import build_cell
from diffuse.config.lora import LoraSetting
from diffuse.errors import CheckpointError, ConfigError
from diffuse.pipelines.lora import LoraFitter
from diffuse.pipelines.stable_diffusion import StableDiffusion
from diffuse.pipelines.stable_diffusion_xl import StableDiffusionXL
from diffuse.record.differences import record_differences
from diffuse.record.recorded_run import read_recorded_run
from diffuse.reproduce.reproduction import build_reproduction

CPU = torch.device("cpu")
FAMILIES = {"sd15": StableDiffusion, "sdxl": StableDiffusionXL}
REQUEST: dict[str, Any] = {"num_inference_steps": 2, "width": 64, "height": 64, "guidance_scale": 5.0}
PROMPT = "a cat, the dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("lora")
    first = oracle.Variant(
        channels=(16, 32), cross=(True, True), heads=8, prediction_type="epsilon", linear_projection=False,
        upcast_attention=False, hidden_act="quick_gelu", pad_token=oracle.END,
    )  # fmt: skip
    return {
        "sd15": oracle.build(place / "sd15", first),
        "sdxl": oracle_sdxl.build(
            place / "sdxl", oracle_sdxl.Variant(channels=(16, 32), heads=(2, 4), cross=(False, True), layers=(1, 2))
        ),
    }


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A kohya file of each family."""
    place = tmp_path_factory.mktemp("files")
    return {
        name: lora_files.write(place / f"{name}.safetensors", lora_files.kohya(LoraMaker(folder)))
        for name, folder in folders.items()
    }


def fitter(family: str, folders: dict[str, Path]) -> LoraFitter:
    return LoraFitter(FAMILIES[family].components, CheckpointFolder.open(folders[family]))


def patched(
    fit: LoraFitter, *loras: NamedLora, dtype: torch.dtype = torch.float32
) -> dict[tuple[str, str], torch.Tensor]:
    """What files make of the weights."""
    result = {}
    for component, patch in fit.patches(loras).items():
        for group in patch.originals(patch.weights, CPU, dtype):
            result |= {(component, key.removesuffix(".weight")): value for key, value in patch.patched(group)}
    return result


def named(file: Path, weight: float = 1.0, **more: Any) -> NamedLora:
    return NamedLora(LoraFile.open(file, file.name), LoraSetting(str(file), weight, **more))


def made(model: str, folders: dict[str, Path], *overrides: str, **more: Any) -> diffuse.Generation:
    model_override = {"sd15": "sd15", "sdxl": "sdxl"}[model]
    own = [f"model.source={folders[model]}", *overrides]
    fields = {**REQUEST, "seed": 3, "hardware": "cpu", "scheduler": "euler", "progress": False, **more}
    return diffuse.txt2img(PROMPT, model=model_override, overrides=own, **fields)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_spelling_makes_the_weights_of_its_formula(
    family: str, dialect: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    maker = LoraMaker(folders[family])
    content = DIALECTS[dialect](maker)
    file = lora_files.write(tmp_path / "a.safetensors", content)
    ours = patched(fitter(family, folders), named(file))
    assert ours.keys() == content[2].keys() != set()
    for place, weight in content[2].items():
        assert float((ours[place] - weight).abs().max()) < 2e-5, place
        assert float((ours[place] - maker.weights[place]).abs().max()) > 1e-2, place
    # As much the other way, in half precision rounded once, and half of it twice.
    halves = patched(fitter(family, folders), named(file, 0.5), named(file, 0.5))
    back = patched(fitter(family, folders), named(file, -1.0), dtype=torch.float16)
    for place, weight in content[2].items():
        base = maker.weights[place].double()
        assert float((halves[place] - weight).abs().max()) < 4e-5, place
        expected = 2 * base.half().double() - weight if "DoRA" not in dialect else None
        if expected is not None:
            assert torch.allclose(back[place].double(), expected, rtol=1e-3, atol=1e-3), place
            assert back[place].dtype == torch.float16


# diffusers 0.42 takes these into peft's layers; of the others it reads a part, or nothing.
FUSED = {
    "sd15": ("peft", "first diffusers", "kohya", "kohya without alpha"),
    "sdxl": ("peft", "first diffusers", "kohya of LDM", "kohya without alpha"),
}


@pytest.mark.parametrize("family", FUSED)
def test_weights_are_those_that_diffusers_fuses_with_peft(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    maker = LoraMaker(folders[family])
    kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    pipeline = kind.from_pretrained(folders[family], safety_checker=None, torch_dtype=torch.float32)
    parts = [part for part in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipeline, part)]
    for dialect in FUSED[family]:
        file = lora_files.write(tmp_path / f"{dialect}.safetensors", DIALECTS[dialect](maker))
        ours = patched(fitter(family, folders), named(file, 0.8))
        pipeline.load_lora_weights(tmp_path, weight_name=file.name)
        pipeline.fuse_lora(lora_scale=0.8)
        theirs = {
            (part, key.removeprefix("text_model.").removesuffix(".weight").removesuffix(".base_layer")): value
            for part in parts
            for key, value in getattr(pipeline, part).state_dict().items()
        }
        for (part, name), weight in ours.items():
            fused = theirs[part, name.removeprefix("text_model.")]
            assert float((weight - fused).abs().max()) < 1e-6, (dialect, part, name)
        changed = {place for place, weight in ours.items() if not torch.equal(weight, maker.weights[place])}
        assert changed == ours.keys() != set()
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_those_of_diffusers_with_the_merged_weights(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    maker = LoraMaker(folders[family])
    first, second = lora_files.peft(maker), lora_files.locon_mid(maker)
    names = [lora_files.write(tmp_path / f"{i}.safetensors", each) for i, each in enumerate((first, second))]
    merged = {}
    for content, weight in ((first, 0.5), (second, -0.25)):
        for place, value in content[2].items():
            base = maker.weights[place].double()
            merged[place] = merged.get(place, base) + weight * (value - base)
    copy = lora_files.merged_checkpoint(folders[family], tmp_path / "merged", merged)
    ours = made(family, folders, f"lora=[{names[0]}:0.5,{names[1]}:-0.25]").frames[:, 0]
    if family == "sd15":
        from diffusers import EulerDiscreteScheduler

        settings = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
        theirs = oracle.picture(
            copy, seed=3, prompt=PROMPT, scheduler=EulerDiscreteScheduler.from_config(settings), **REQUEST
        )
    else:
        theirs = oracle_sdxl.picture(copy, seed=3, prompt=PROMPT, **REQUEST)
    assert_same(ours, theirs)
    plain = made(family, folders).frames[:, 0]
    assert np.abs(plain.astype(int) - ours).mean() > 5


def test_nothing_of_it_is_no_lora_and_what_is_taken_off_leaves_no_trace(
    folders: dict[str, Path], files: dict[str, Path]
) -> None:
    lora = files["sd15"]
    plain = made("sd15", folders).frames
    whole = made("sd15", folders, f"lora={lora}").frames
    assert np.array_equal(made("sd15", folders, f"lora={lora}:0").frames, plain)
    text = made("sd15", folders, f"lora={lora}", "lora.0.unet=0").frames
    unet = made("sd15", folders, f"lora={lora}", "lora.0.text_encoder=0").frames
    assert len({each.tobytes() for each in (plain, whole, text, unet)}) == 4
    other_way = made("sd15", folders, f"lora={lora}:-1").frames
    assert not np.array_equal(other_way, whole)
    assert np.array_equal(made("sd15", folders, f"lora={lora}").frames, whole)  # whatever was on before
    assert np.array_equal(made("sd15", folders).frames, plain)


def test_parts_of_the_model_have_weights_of_their_own(folders: dict[str, Path], files: dict[str, Path]) -> None:
    fit, file = fitter("sd15", folders), files["sd15"]
    whole, maker = patched(fit, named(file)), LoraMaker(folders["sd15"])
    blocks = {"down_blocks": 0.5, "down_blocks.1": 0.0, "text_model.encoder.layers.0": 0.0}
    some = patched(fit, named(file, blocks=blocks))
    assert {place for place in whole if place not in some} == {
        place for place in whole if place[1].startswith(("down_blocks.1.", "text_model.encoder.layers.0."))
    }
    for place, value in some.items():
        factor = 0.5 if place[1].startswith("down_blocks.0.") else 1.0
        expected = maker.weights[place] + factor * (whole[place] - maker.weights[place])
        assert torch.allclose(value, expected, atol=1e-6), place
    with pytest.raises(ConfigError, match=r"lora\.0\.blocks\.down_blocks\.7: .*changes nothing there"):
        fit.patches([named(file, blocks={"down_blocks.7": 1.0})])
    with pytest.raises(ConfigError, match="has no text_encoder_2; it has text_encoder, unet"):
        fit.patches([named(file, text_encoder_2=1.0)])


def test_a_record_knows_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    content = lora_files.kohya(LoraMaker(folders["sd15"]))
    file = lora_files.write(tmp_path / "style.safetensors", content)
    generation = made("sd15", folders, f"lora={file}:0.5", "tracking=none", save=tmp_path / "out")
    (picture,) = generation.paths
    assert generation.record["weights"]["lora"]["0"]["source"] == str(file)
    assert generation.record["config"]["lora"][0]["weight"] == 0.5
    recorded = read_recorded_run(picture)
    again = build_reproduction(recorded)
    assert again.cfg.lora[0].source == str(file)

    other = made("sd15", folders, f"lora={file}:0.7").record
    differences = [line for line in record_differences(generation.record, other) if not line.startswith("the code")]
    assert differences == ["lora: weight=0.5 then, weight=0.7 now"]

    plain = made("sd15", folders).record
    assert plain["config"]["lora"] is None
    records = [each | {"overrides": []} for each in (generation.record, other, plain)]
    cells = [build_cell(tmp_path / f"{index}.png", record) for index, record in enumerate(records)]
    assert {axis.key: axis.values for axis in find_axes(cells[:2])} == {"lora.0.weight": (0.5, 0.7)}
    assert ("lora", (None, "style.safetensors")) in [(axis.key, axis.values) for axis in find_axes(cells[1:])]

    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        CheckpointError, match=r"style\.safetensors: there is no such file; give the file .*lora\.0\.source"
    ):
        build_reproduction(recorded)
    assert build_reproduction(recorded, [f"lora.0.source={moved}"]).cfg.lora[0].source == str(moved)
    lora_files.write(file, lora_files.loha(LoraMaker(folders["sd15"])))
    with pytest.raises(CheckpointError, match="is another file now"):
        build_reproduction(recorded)
    with pytest.raises(ConfigError, match="the run has 1 LoRA files"):
        build_reproduction(recorded, [f"lora.1.source={moved}"])
    with pytest.raises(ConfigError, match=r"lora\.0\.source=null: should be a file"):
        build_reproduction(recorded, ["lora.0.source=null"])
    with pytest.raises(CheckpointError, match=r"lora\.0\.source=nowhere: there is no such file; copy it there"):
        build_reproduction(recorded, ["lora.0.source=nowhere"])


def test_factors_that_are_no_numbers_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors, *rest = lora_files.kohya(LoraMaker(folders["sd15"]))
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[key] = torch.full_like(tensors[key], torch.nan)
    file = lora_files.write(tmp_path / "bad.safetensors", (tensors, *rest))
    with pytest.raises(CheckpointError, match=rf"{key} holds NaN or an infinity; the file is damaged"):
        made("sd15", folders, f"lora={file}")


def test_a_record_knows_the_settings_beside_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = lora_files.peft(LoraMaker(folders["sd15"]))[0]
    own = {key.replace("unet.", "base_model.model.", 1): each for key, each in tensors.items() if key[:5] == "unet."}
    file = lora_files.write(tmp_path / "adapter_model.safetensors", (own, {}, {}))
    config = tmp_path / "adapter_config.json"
    config.write_text(f'{{"lora_alpha": {lora_files.RANK}}}')
    first = made("sd15", folders, f"lora={file}", "tracking=none", save=tmp_path / "out")
    recorded = read_recorded_run(first.paths[0])
    assert build_reproduction(recorded).cfg.lora[0].source == str(file)
    config.write_text(f'{{"lora_alpha": {20 * lora_files.RANK}}}')
    second = made("sd15", folders, f"lora={file}")
    assert not np.array_equal(first.frames, second.frames)
    (line,) = [each for each in record_differences(first.record, second.record) if not each.startswith("the code")]
    assert line.startswith("the adapter_config.json of lora.0: SHA-256 ")
    with pytest.raises(CheckpointError, match=r"has another adapter_config\.json beside it now"):
        build_reproduction(recorded)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json beside it now"):
        build_reproduction(recorded)


def test_the_text_of_a_prompt_is_encoded_anew_for_each_file(folders: dict[str, Path], files: dict[str, Path]) -> None:
    own = [f"model.source={folders['sd15']}", f"lora={files['sd15']}"]
    pipeline = diffuse.load_pipeline("sd15", hardware="cpu", overrides=own)
    with_lora = pipeline.encode("a cat").prompt_embeds
    without = pipeline.encode("a cat", overrides=[own[0], "lora=null"]).prompt_embeds
    assert not torch.equal(with_lora, without)
    assert torch.equal(pipeline.encode("a cat").prompt_embeds, with_lora)
