"""Components from elsewhere than their checkpoint: pictures against diffusers', the record, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_sdxl
import pytest
import torch
from command import Done, diffuse
from diffusers import LCMScheduler, StableDiffusionXLPipeline
from hub_server import MAIN, HubServer, Repository
from PIL import Image

from diffuse.checkpoints.checkpoint import weights_tag
from diffuse.config.compose import compose_config
from diffuse.media.load import read_record
from diffuse.run import open as opening

BASE = oracle_sdxl.Variant()
OTHER = replace(BASE, seed=40, time_cond_proj_dim=6)  # its denoiser is distilled, all else fits the base
MODULES = ("unet", "vae", "text_encoder", "text_encoder_2")
REQUEST: dict[str, Any] = {"prompt": "a cat, the dog", "width": 64, "height": 64, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle_sdxl.build(tmp_path_factory.mktemp("base"), BASE)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = oracle_sdxl.build(tmp_path_factory.mktemp("other"), OTHER)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    return folder


@pytest.fixture(scope="module")
def theirs(base: Path, other: Path) -> tuple[Any, Any]:
    """diffusers' own pipelines of both."""
    loaded = [
        StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
        for folder in (base, other)
    ]
    for pipeline in loaded:
        pipeline.set_progress_bar_config(disable=True)
    return loaded[0], loaded[1]


def made_by_diffusers(theirs: tuple[Any, Any], *names: str, sampler: Any = None, **request: Any) -> np.ndarray:
    """The base's picture with components `names` of the other."""
    parts = {**theirs[0].components, **{name: theirs[1].components[name] for name in names}}
    if sampler is not None:
        parts["scheduler"] = sampler.from_config(parts["scheduler"].config)
    pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 5.0, **REQUEST, **request}
    return np.asarray(pipeline(**options, generator=torch.Generator().manual_seed(0)).images[0])


def command(cwd: Path, *words: str, **fields: Any) -> Done:
    given = {**REQUEST, "guidance_scale": 5.0, "seed": 0, "output.dir": "out", "hardware.threads": 1, **fields}
    named = (f"{name}={value}" for name, value in given.items() if value is not None)
    return diffuse("hardware=cpu", "tracking=none", *words, *named, cwd=cwd)


def picture(cwd: Path, done: Done) -> np.ndarray:
    assert done.status == 0, done.err
    return np.asarray(Image.open(cwd / done.paths[0]))


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """One level in 255 apart at most, and a picture of something."""
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def assert_refused(done: Done, *said: str) -> None:
    assert done.status == 2, done.err
    for words in said:
        assert words in done.err
    assert done.err.startswith("diffuse: ") and done.err.count("\n") == 1 and done.out == ""


@pytest.mark.parametrize(("name", "inside"), [*((name, True) for name in MODULES), ("unet", False)])
def test_each_component(
    name: str, inside: bool, base: Path, other: Path, theirs: tuple[Any, Any], tmp_path: Path
) -> None:
    source = {f"model.{name}.source": other / name if inside else other, "model.source": base}
    made = picture(tmp_path, command(tmp_path, "model=sdxl", **source))
    assert_same(made, made_by_diffusers(theirs, name))
    assert np.abs(made.astype(int) - made_by_diffusers(theirs)).mean() > 2


def test_several_with_tokenizers_and_what_the_record_says(
    base: Path, other: Path, theirs: tuple[Any, Any], tmp_path: Path
) -> None:
    tokenizer = oracle.write_tokenizer(tmp_path / "words", "fast", oracle.END)
    parts = {"text_encoder": other, "vae": other / "vae", "tokenizer": tokenizer}
    fields = {"model.source": base, **{f"model.{name}.source": source for name, source in parts.items()}}
    done = command(tmp_path, "model=sdxl", **fields)
    assert_same(picture(tmp_path, done), made_by_diffusers(theirs, "text_encoder", "vae"))

    record = read_record(tmp_path / done.paths[0])
    weights = record["weights"]
    assert weights["source"] == str(base)
    assert {name: part["source"] for name, part in weights["components"].items()} == {
        name: str(source) for name, source in parts.items()
    }
    digests = {weights["sha256"], *(part["sha256"] for part in weights["components"].values())}
    assert len(digests) == 4
    assert weights_tag(weights) == "; ".join(
        [f"{base}@{weights['sha256']}"]
        + [
            f"{name}={parts[name]}@{weights['components'][name]['sha256']}"
            for name in ("vae", "text_encoder", "tokenizer")
        ]
    )
    assert record["config"]["model"]["vae"] == {
        "source": str(other / "vae"),
        **dict.fromkeys(("revision", "variant", "fetch_variant")),
    }
    assert "unet" not in record["config"]["model"]
    shown = Image.open(tmp_path / done.paths[0]).text["parameters"]  # type: ignore[attr-defined]
    assert f"VAE hash: {weights['components']['vae']['sha256'][:10]}, VAE: vae" in shown


def test_what_comes_from_elsewhere_makes_another_pipeline(base: Path, other: Path, tmp_path: Path) -> None:
    words = ["model=sdxl", f"model.source={base}", "hardware=cpu", "prompt=x"]
    own = opening.open_pipeline(compose_config(words)).pipeline
    mixed = opening.open_pipeline(compose_config([*words, f"model.vae.source={other}"]))
    again = opening.open_pipeline(compose_config([*words, f"model.vae.source={other}"]))
    assert own is not mixed.pipeline is again.pipeline
    same_but_other = opening.open_pipeline(compose_config([*words, f"model.vae.source={base}"])).pipeline
    assert same_but_other is not mixed.pipeline
    # Its own configuration is the one that counts: this one need not be in float32.
    half = [*words, "hardware.dtype=bfloat16", "memory_profile=full_gpu"]
    for more, dtype in (([], "float32"), ([f"model.vae.source={other}"], "bfloat16")):
        opened = opening.open_pipeline(compose_config([*half, *more]))
        assert opened.pipeline.memory.dtypes["vae"] == dtype


def test_sdxl_lcm_is_its_configuration_alone(base: Path, other: Path, theirs: tuple[Any, Any], tmp_path: Path) -> None:
    """The distilled denoiser by itself, as it is published, in SDXL base; four steps, the scale embedded."""
    unset = {"num_inference_steps": None, "guidance_scale": None}
    fields = {"model.source": base, "model.unet.source": other / "unet", **unset}
    made = picture(tmp_path, command(tmp_path, "model=sdxl_lcm", **fields))
    few = {"num_inference_steps": 4, "guidance_scale": 8.0}
    assert_same(made, made_by_diffusers(theirs, "unet", sampler=LCMScheduler, **few))
    assert np.abs(made.astype(int) - picture(tmp_path, command(tmp_path, "model=sdxl", **fields))).mean() > 2


def test_a_refiner_has_components_too(base: Path, other: Path, tmp_path: Path) -> None:
    """A refiner that is put together out of SDXL's parts is refused for what it is, by its own name."""
    fields = {"model.source": base, "refiner.source": base, "refiner.unet.source": other}
    done = command(tmp_path, "model=sdxl", "refiner=sdxl", **fields)
    assert_refused(done, "added conditioning is 72 wide", "choose another refiner.unet.source")


def test_what_does_not_fit_is_refused_in_one_line(base: Path, other: Path, tmp_path: Path) -> None:
    odd = oracle_sdxl.build(tmp_path / "odd", replace(BASE, first=(32, 3), vae_channels=(8, 16), cross=(True,) * 3))
    sd = oracle.build(
        tmp_path / "sd", oracle.Variant(channels=(16, 32), heads=2, cross=(True, True), vae_channels=(8, 16))
    )
    (tmp_path / "empty").mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(base / "vae" / "config.json", pickled)
    (pickled / "diffusion_pytorch_model.bin").write_bytes(b"")
    inpainting = json.loads((other / "unet" / "config.json").read_text()) | {"in_channels": 9, "out_channels": 8}
    (tmp_path / "nine").mkdir()
    (tmp_path / "nine" / "config.json").write_text(json.dumps(inpainting))
    long = oracle.write_tokenizer(tmp_path / "long", "classic", oracle.END)
    vocabulary = json.loads((long / "vocab.json").read_text())
    (long / "vocab.json").write_text(json.dumps(vocabulary | {"more": len(vocabulary)}))
    cases: dict[tuple[str, Any], tuple[str, ...]] = {
        ("vae", other / "unet"): ("_class_name='UNet2DConditionModel' is not implemented, only 'AutoencoderKL'",),
        ("unet", other / "vae"): ("_class_name='AutoencoderKL' is not implemented",),
        ("text_encoder", odd): ("attends to text [48] wide", "choose another model.text_encoder.source"),
        ("unet", tmp_path / "nine"): ("gives 8, the vae's latents have 4", "choose another model.unet.source"),
        ("unet", sd): ("takes neither sizes nor a pooled text", "choose another model.unet.source"),
        ("text_encoder_2", sd): (f"{sd}: has neither a folder text_encoder_2 nor config.json of its own",),
        ("tokenizer", tmp_path / "empty"): ("has neither a folder tokenizer nor tokenizer.json, or vocab.json",),
        ("tokenizer", long): ("the tokenizer has", "choose another model.tokenizer.source"),
        ("vae", pickled): ("diffusion_pytorch_model.bin: the file is empty",),
        ("vae", "/nowhere/at/all"): ("does not exist; set model.vae.source to a folder",),
        ("vae", "x y"): ("set model.vae.source to one of these",),
        ("vae", ""): ("set model.vae.source to one of these",),
    }
    for (name, source), said in cases.items():
        done = command(tmp_path, "model=sdxl", **{"model.source": base, f"model.{name}.source": source})
        assert_refused(done, *said)
    done = command(
        tmp_path, "model=sdxl", **{"model.source": base, "model.vae.source": other, "model.vae.variant": "x"}
    )
    assert_refused(done, f"{other}/vae: no variant x; present: the plain one; set model.vae.variant=null")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.vea.source=x", "did you mean model.vae.source?"),
        ("model.vae.sorce=x", "did you mean model.vae.source?"),
        ("model.vae=x", "model.vae has fields; set one of them, such as model.vae.source=VALUE"),
        ("model.vae.revision=x", "model.vae.revision=x: is that of model.vae.source, which is not set"),
        (
            "model.text_encoder_2.source=x/y",
            "model=tiny has no text_encoder_2; it has unet, vae, text_encoder, tokenizer",
        ),
        ("refiner.vae.source=x/y", "refiner.vae.source=x/y: there is no refiner; choose one, such as refiner=sdxl"),
        ("model.download=maybe", "'maybe' is none of ask, yes, never"),
    ],
)
def test_words_that_are_refused(word: str, said: str, tmp_path: Path) -> None:
    assert_refused(diffuse("tracking=none", word, cwd=tmp_path), said)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def hub(base: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub that has the base, and two autoencoders as they are published: by themselves, and in a checkpoint."""

    def files(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    vae = files(other / "vae")
    alone = {**vae, "README.md": b"", "sdxl_vae.safetensors": b"x" * 99, "diffusion_pytorch_model.bin": b"x" * 99}
    held = {"a/base": files(base), "a/vae": alone, "b/whole": files(other)}
    with HubServer({name: Repository(content) for name, content in held.items()}) as running:
        running.is_the_hub(monkeypatch, tmp_path / "cache")
        yield running


def test_from_the_hub(hub: HubServer, base: Path, theirs: tuple[Any, Any], tmp_path: Path) -> None:
    def fields(source: str) -> dict[str, Any]:
        return {"model.source": "a/base", "model.vae.source": source, "model.download": "yes"}

    done = command(tmp_path, "model=sdxl", **fields("a/vae"))
    assert_same(picture(tmp_path, done), made_by_diffusers(theirs, "vae"))
    asked = hub.fetched()
    assert "config.json" in asked and "diffusion_pytorch_model.safetensors" in asked  # of a/vae
    assert not any(path.startswith("vae/") or "sdxl_vae" in path or path.endswith((".bin", ".md")) for path in asked)
    weights = read_record(tmp_path / done.paths[0])["weights"]["components"]["vae"]
    assert (weights["source"], weights["revision"]) == ("a/vae", MAIN)

    hub.log.clear()
    same = command(tmp_path, "model=sdxl", **{**fields("b/whole"), "model.vae.revision": MAIN})
    assert np.array_equal(picture(tmp_path, same), picture(tmp_path, done))
    assert hub.fetched() == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert read_record(tmp_path / same.paths[0])["weights"]["components"]["vae"]["sha256"] == weights["sha256"]

    hub.log.clear()
    for source, revision in (("a/vae", "null"), ("b/whole", MAIN)):
        opening._pipelines.clear()
        here = {**fields(source), "model.vae.revision": revision, "model.download": "never"}
        assert command(tmp_path, "model=sdxl", **here).status == 0
    assert hub.log == []


def test_download_of_several_sources_is_one_matter(hub: HubServer, tmp_path: Path) -> None:
    words = ("download", "model=sdxl", "model.source=a/base", "model.vae.source=a/vae")
    refused = diffuse(*words, cwd=tmp_path)
    assert refused.status == 2
    *stated, last = refused.err.splitlines()
    assert [line.split(" at ")[0] for line in stated] == ["a/base", "a/vae"]
    assert last.startswith("diffuse: a/base, a/vae: ") and "add --yes to agree" in last
    done = diffuse(*words, "--yes", cwd=tmp_path)
    assert done.status == 0, done.err
    assert [path.parts[-3] for path in done.paths] == ["models--a--base", "models--a--vae"]
    assert done.err.count("complete, every file checked") == 2
    assert diffuse(*words, "model.download=never", cwd=tmp_path).status == 2
    path = next(done.paths[1].glob("*.safetensors"))
    path.resolve().write_bytes(b"x" + path.read_bytes()[1:])
    assert "a/vae/diffusion_pytorch_model.safetensors: is not what the hub lists" in diffuse(*words, cwd=tmp_path).err
    hub.repositories["a/vae"].files.pop("config.json")
    assert "a/vae: has neither a folder vae nor config.json" in diffuse(*words, "--yes", cwd=tmp_path).err
