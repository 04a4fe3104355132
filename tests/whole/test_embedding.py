"""Textual inversion: words of every format in prompts, pictures against diffusers, records, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import embedding_files
import lora_files
import numpy as np
import oracle
import oracle_sdxl
import pytest
import torch
from hub_server import MAIN, HubServer, Repository
from lora_files import LoraMaker
from picture_parity import assert_same
from safetensors.torch import save_file
from torch import nn
from torch_archives import COMMAND, MARK, Calls

import diffuse
from diffuse.checkpoints.embedding.locate_embedding import open_embeddings
from diffuse.cli.main import main
from diffuse.compare.axes import find_axes
from diffuse.compare.cells import build_cell
from diffuse.config.compose import compose_config
from diffuse.errors import CheckpointError, ConfigError, DiffuseError
from diffuse.plan.make_plan import open_setting
from diffuse.record.differences import record_differences
from diffuse.record.recorded_run import read_recorded_run
from diffuse.reproduce.reproduction import build_reproduction

REQUEST: dict[str, Any] = {"num_inference_steps": 1, "width": 32, "height": 32, "guidance_scale": 5.0}
WORD = "<cat-toy>"
XL = oracle_sdxl.Variant(channels=(16, 32), heads=(2, 4), cross=(False, True), layers=(1, 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    first = oracle.Variant(
        channels=(16, 32), cross=(True, True), heads=8, prediction_type="epsilon", linear_projection=False,
        upcast_attention=False, hidden_act="quick_gelu", pad_token=oracle.END,
    )  # fmt: skip
    return {"sd15": oracle.build(place / "sd15", first), "sdxl": oracle_sdxl.build(place / "sdxl", XL)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word of three vectors, for the model with one text encoder."""
    values = embedding_files.vectors(3, 32)
    return embedding_files.diffusers_file(tmp_path_factory.mktemp("toy") / "learned_embeds.safetensors", WORD, values)


def made(model: str, folders: dict[str, Path], prompt: str, *overrides: str, **more: Any) -> diffuse.Generation:
    own = [f"model.source={folders[model]}", *overrides]
    fields = {**REQUEST, "seed": 3, "hardware": "cpu", "scheduler": "euler", "progress": False, **more}
    return diffuse.txt2img(prompt, model=model, overrides=own, **fields)


def euler(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler

    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return EulerDiscreteScheduler.from_config(settings)


def test_pictures_are_those_of_diffusers(folders: dict[str, Path], toy: Path, tmp_path: Path) -> None:
    worse = embedding_files.web_ui_file(tmp_path / "bad.pt", "bad.thing", embedding_files.vectors(2, 32, 1))
    prompt, negative = f"a {WORD}, the {WORD} in a cat", "bad.thing, a bad.thing"
    files = f"embedding=[{toy},{worse}]"
    ours = made("sd15", folders, prompt, files, negative_prompt=negative).frames[:, 0]
    oracle.picture(folders["sd15"], prompt="a", scheduler=euler(folders["sd15"]), **REQUEST)
    theirs = oracle._pipelines.pop(folders["sd15"])
    theirs.load_textual_inversion(str(toy))
    theirs.load_textual_inversion(str(worse))
    theirs.scheduler = euler(folders["sd15"])
    generator = torch.Generator("cpu").manual_seed(3)
    images = theirs(prompt=prompt, negative_prompt=negative, generator=generator, output_type="pil", **REQUEST).images
    assert_same(ours, np.stack([np.asarray(image) for image in images]))
    plain = made("sd15", folders, prompt, negative_prompt=negative).frames[:, 0]
    assert np.abs(plain.astype(int) - ours).mean() > 1


def test_pictures_of_sdxl_are_those_of_diffusers(folders: dict[str, Path], tmp_path: Path) -> None:
    """The published end token is 2, so that the pooled text is the last learned vector's."""
    first, second = embedding_files.vectors(2, 16), embedding_files.vectors(2, 32)
    file = embedding_files.parts_file(tmp_path / "toy.safetensors", first, second)
    prompt = f"a {WORD} and the cat"
    ours = made("sdxl", folders, prompt, f"embedding=[{{source: {file}, token: '{WORD}'}}]").frames[:, 0]
    # Two files, of which each text encoder has one.
    pair = [
        embedding_files.diffusers_file(tmp_path / f"{name}.bin", WORD, values)
        for name, values in (("learned_embeds", first), ("learned_embeds_2", second))
    ]
    assert np.array_equal(made("sdxl", folders, prompt, f"embedding=[{pair[0]},{pair[1]}]").frames[:, 0], ours)
    oracle_sdxl.picture(folders["sdxl"], prompt="a", **REQUEST)
    theirs = oracle_sdxl._pipelines.pop(folders["sdxl"])
    for values, number in ((first, ""), (second, "_2")):
        tokenizer, encoder = (getattr(theirs, f"{name}{number}") for name in ("tokenizer", "text_encoder"))
        theirs.load_textual_inversion({WORD: values}, token=WORD, text_encoder=encoder, tokenizer=tokenizer)
    generator = torch.Generator("cpu").manual_seed(3)
    images = theirs(prompt=prompt, generator=generator, output_type="pil", **REQUEST).images
    assert_same(ours, np.stack([np.asarray(image) for image in images]))
    with pytest.raises(CheckpointError, match=r"none of 32 numbers for text_encoder_2; give .* other file"):
        made("sdxl", folders, prompt, f"embedding={pair[0]}")


def test_every_format_says_the_same(tmp_path: Path) -> None:
    values = embedding_files.vectors(2, 32, 5)
    save_file({"emb_params": values}, tmp_path / "Toy.safetensors")
    save_file({"toy": values.half()}, tmp_path / "half.safetensors")
    alone = embedding_files.diffusers_file(tmp_path / "alone.bin", WORD, values[:1])
    files = {
        tmp_path / "Toy.safetensors": "Toy",  # which says no word: that is the file's name
        tmp_path / "half.safetensors": "toy",
        embedding_files.diffusers_file(tmp_path / "a.safetensors", WORD, values): WORD,
        embedding_files.diffusers_file(tmp_path / "b.bin", WORD, values): WORD,
        embedding_files.web_ui_file(tmp_path / "c.pt", "Thing", values): "Thing",
        embedding_files.web_ui_file(tmp_path / "Other.pt", "", values, first=True): "Other",
        alone: WORD,
    }
    for file, word in files.items():
        (found,) = open_embeddings({"embedding": str(file), "model": {"name": "sd15", "download": "never"}})
        assert found.word == word
        expected = values.half().float() if file.stem == "half" else values[:1] if file == alone else values
        assert torch.equal(found.file.vectors(None), expected), file


def test_a_word_is_found_whatever_its_case(folders: dict[str, Path], tmp_path: Path) -> None:
    """With all its vectors; diffusers takes the first one of a word with capital letters."""
    file = embedding_files.web_ui_file(tmp_path / "a.pt", "BadThing", embedding_files.vectors(2, 32))
    pipeline = diffuse.load_pipeline(
        "sd15", hardware="cpu", overrides=[f"model.source={folders['sd15']}", f"embedding={file}"]
    )
    first, second = (pipeline.encode(f"a {word} cat").prompt_embeds for word in ("BadThing", "badthing"))
    for part in ("clip_l", "clip_g"):  # the only text encoder's, whatever the file calls it
        save_file({part: embedding_files.vectors(2, 32)}, tmp_path / "badthing.safetensors")
        own = [f"embedding={tmp_path}/badthing.safetensors"]
        assert torch.equal(pipeline.encode("a badthing cat", overrides=own).prompt_embeds, first)
    other = pipeline.encode("a ~x~ cat", overrides=[f"embedding=[{{source: {file}, token: '~x~'}}]"]).prompt_embeds
    assert torch.equal(first, second) and torch.equal(first, other)
    assert not torch.equal(pipeline.encode("a badthing cat", overrides=["embedding=null"]).prompt_embeds, first)


def test_weights_and_chunks_of_prompts_hold_for_learned_words(folders: dict[str, Path], toy: Path) -> None:
    pipeline = diffuse.load_pipeline(
        "sd15", hardware="cpu", overrides=[f"model.source={folders['sd15']}", f"embedding={toy}"]
    )

    def encoded(prompt: str, *more: str) -> torch.Tensor:
        return pipeline.encode(prompt, overrides=list(more)).prompt_embeds

    weighted = "prompt_syntax=weighted"
    plain = encoded(f"a {WORD} cat")
    assert torch.equal(encoded(f"a ({WORD}:1.0) cat", weighted), plain)
    empty, half = encoded(""), encoded(f"a ({WORD}:0.5) cat", weighted)
    assert torch.allclose(half[:, 2:5], empty[:, 2:5] + 0.5 * (plain - empty)[:, 2:5], atol=1e-6)
    assert torch.equal(half[:, 5:], plain[:, 5:])
    # A word of several vectors is not cut where a chunk ends.
    long = encoded("a " * 73 + WORD, "long_prompt=chunk")
    assert long.shape[1] == 2 * 77
    assert torch.equal(long[:, 77:], encoded(WORD))


def test_it_leaves_no_trace(folders: dict[str, Path], toy: Path, tmp_path: Path) -> None:
    prompt = f"a {WORD} on the cat"
    plain = made("sd15", folders, prompt).frames
    whole = made("sd15", folders, prompt, f"embedding={toy}").frames
    other = embedding_files.diffusers_file(tmp_path / "other.bin", WORD, embedding_files.vectors(3, 32, 8))
    assert not np.array_equal(made("sd15", folders, prompt, f"embedding={other}").frames, whole)
    assert np.array_equal(made("sd15", folders, prompt).frames, plain)
    assert np.array_equal(made("sd15", folders, prompt, f"embedding={toy}").frames, whole)
    assert np.array_equal(
        made("sd15", folders, "a cat", f"embedding={toy}").frames, made("sd15", folders, "a cat").frames
    )
    # Together with a LoRA that changes the text encoder.
    lora = lora_files.write(tmp_path / "lora.safetensors", lora_files.kohya(LoraMaker(folders["sd15"])))
    both = made("sd15", folders, prompt, f"embedding={toy}", f"lora={lora}").frames
    assert not np.array_equal(both, made("sd15", folders, prompt, f"lora={lora}").frames)
    assert np.array_equal(made("sd15", folders, prompt, f"embedding={toy}", "memory_profile=streaming").frames, whole)


def test_records_say_which_file_it_was(folders: dict[str, Path], toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "toy.safetensors"
    file.write_bytes(toy.read_bytes())
    own = (f"embedding={file}", "tracking=none")
    generation = made("sd15", folders, f"a {WORD}", *own, save=tmp_path / "out")
    entry = generation.record["weights"]["embedding"]["0"]
    assert (entry["source"], len(entry["sha256"])) == (str(file), 64)
    assert generation.record["config"]["embedding"] == [{"source": str(file), "token": None}]
    (picture,) = generation.paths
    recorded = read_recorded_run(picture)
    assert build_reproduction(recorded).cfg.embedding[0].source == str(file)

    word = f"embedding=[{{source: {file}, token: 'tom'}}]"
    (other,) = made("sd15", folders, "a tom", word, "tracking=none", save=tmp_path / "word").paths
    assert build_reproduction(read_recorded_run(other)).cfg.embedding[0].token == "tom"

    plain = made("sd15", folders, f"a {WORD}").record
    assert plain["config"]["embedding"] is None and "embedding" not in plain["weights"]
    lines = [line for line in record_differences(generation.record, plain) if not line.startswith("the code")]
    assert [line.partition(":")[0] for line in lines] == ["the file of embedding.0"]
    records = [each | {"overrides": []} for each in (generation.record, plain)]
    cells = [build_cell(tmp_path / f"{index}.png", each) for index, each in enumerate(records)]
    assert [(axis.key, axis.values) for axis in find_axes(cells)] == [("embedding", (None, "toy.safetensors"))]

    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(CheckpointError, match=r"there is no such file; give the file .*embedding\.0\.source=FILE"):
        build_reproduction(recorded)
    assert build_reproduction(recorded, [f"embedding.0.source={moved}"]).cfg.embedding[0].source == str(moved)
    embedding_files.diffusers_file(file, WORD, embedding_files.vectors(1, 32))
    with pytest.raises(CheckpointError, match="is another file now"):
        build_reproduction(recorded)
    with pytest.raises(ConfigError, match="the run has 1 embeddings"):
        build_reproduction(recorded, [f"embedding.1.source={moved}"])


def test_a_word_that_no_prompt_has_is_pointed_out(
    folders: dict[str, Path], toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("sd15", folders, "a cat", f"embedding={toy}", "tracking=none", save=tmp_path / "out", progress=True)
    assert f"embedding.0: none of the prompts has its word {WORD}" in capsys.readouterr().err


def test_files_on_the_hub(folders: dict[str, Path], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = lora_files.write(tmp_path / "style.safetensors", lora_files.kohya(LoraMaker(folders["sd15"])))
    repositories = {
        "concepts/toy": Repository({"learned_embeds.safetensors": toy.read_bytes(), "token.txt": b"x"}),
        "a/loras": Repository({"style.safetensors": lora.read_bytes(), "b/x.safetensors": lora.read_bytes()}),
        "a/two": Repository({"1.safetensors": lora.read_bytes(), "2.safetensors": lora.read_bytes()}),
    }
    prompt, allowed = f"a {WORD}", "model.download=yes"
    with HubServer(repositories) as hub:
        hub.is_the_hub(monkeypatch, tmp_path / "cache")
        for text in ("embedding=concepts/toy", "lora=a/loras/style.safetensors:0.5", "lora=a/loras"):
            with pytest.raises(ConfigError, match=r"model\.download=never"):
                made("sd15", folders, prompt, text, "model.download=never")
        with pytest.raises(ConfigError, match=r"would be fetched, .* download model=sd15 .*'lora=a/loras/style"):
            made("sd15", folders, prompt, "lora=a/loras/style.safetensors:0.5")
        assert hub.fetched() == []
        with pytest.raises(CheckpointError, match=r"has 1\.safetensors, 2\.safetensors; name one, as a/two/FILE"):
            made("sd15", folders, prompt, "lora=a/two", allowed)
        with pytest.raises(CheckpointError, match=r"a/loras: has no file none\.safetensors; it has style\.safetensors"):
            made("sd15", folders, prompt, "lora=a/loras/none.safetensors", allowed)
        with pytest.raises(SystemExit, match="0"):
            main(["download", "model=sd15", f"model.source={folders['sd15']}", "lora=a/loras/b/x.safetensors", "--yes"])
        assert hub.fetched() == ["b/x.safetensors"]
        fetched = made("sd15", folders, prompt, "lora=a/loras/style.safetensors:0.5", "embedding=concepts/toy", allowed)
        assert hub.fetched() == ["b/x.safetensors", "learned_embeds.safetensors", "style.safetensors"]
        weights = fetched.record["weights"]
        assert [weights[name]["0"]["revision"] for name in ("lora", "embedding")] == [MAIN, MAIN]
        assert weights["lora"]["0"]["source"] == "a/loras/style.safetensors"
        local = made("sd15", folders, prompt, f"lora={lora}:0.5", f"embedding={toy}")
        assert np.array_equal(fetched.frames, local.frames)
    # Without the hub, from its cache, also at the commit, and under the plain name of the repository.
    for text in ("lora=a/loras/style.safetensors:0.5", f"lora=a/loras@{MAIN}/style.safetensors:0.5"):
        again = made("sd15", folders, prompt, text, "embedding=concepts/toy", "model.download=never")
        assert np.array_equal(again.frames, local.frames)


def refusal(folders: dict[str, Path], model: str, override: str) -> str:
    """What is said before a weight is read, by a plan as by a run."""
    cfg = compose_config([f"model={model}", f"model.source={folders[model]}", "hardware=cpu", override])
    with pytest.raises(DiffuseError) as caught:
        open_setting(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused_in_a_line(folders: dict[str, Path], toy: Path, tmp_path: Path) -> None:
    def file(name: str, content: dict[str, torch.Tensor]) -> str:
        save_file(content, tmp_path / f"{name}.safetensors")
        return f"embedding={tmp_path / name}.safetensors"

    def says(said: str, override: str, model: str = "sd15") -> None:
        assert said in refusal(folders, model, override), override

    values = embedding_files.vectors
    parts = embedding_files.parts_file(tmp_path / "xl.safetensors", values(1, 768), values(1, 1280))
    says("has clip_l of 768 numbers and clip_g of 1280 numbers, and model.source=", f"embedding={parts}")
    says("it was made for Stable Diffusion XL; give an embedding that was made for this family", f"embedding={parts}")
    says("it was made for Stable Diffusion 2.x", file("wide", {"<w>": values(1, 1024)}))
    says("it was made for Stable Diffusion 1.x", file("narrow", {"<w>": values(1, 768)}), "sdxl")
    says("it was made for Stable Diffusion 2.x", file("wider", {"clip_l": values(1, 1024)}))
    half = file("half", {"clip_l": values(1, 16)})
    says("has clip_l of 16 numbers and no clip_g of 32 numbers, and model.source=", half, "sdxl")
    half = file("other", {"clip_g": values(1, 32)})
    says("takes both; give a file that has them", half, "sdxl")
    again = file("the", {"the": values(1, 32)})
    says('embedding.0.token=the: is a word of the tokenizer already; give another, such as "<the>"', again)
    twice = f"embedding=[{toy},{{source: {toy}, token: '<CAT-toy>'}}]"
    says("embedding.1.token=<CAT-toy>: is the word of another embedding", twice)
    says("has 76 vectors, and a prompt takes 75", file("long", {"<w>": values(76, 32)}))
    says("is [2, 2, 32] and should be [N, D]", file("cube", {"<w>": torch.zeros(2, 2, 32)}))
    says("is stored as I64; one of", file("ints", {"<w>": torch.zeros(2, 32, dtype=torch.int64)}))
    says("holds NaN or an infinity", file("nan", {"<w>": torch.full((1, 32), torch.nan)}))
    says("it should hold the vectors of one word (<a>, <b>)", file("two", {"<a>": values(1, 32), "<b>": values(1, 32)}))
    lora = lora_files.write(tmp_path / "lora.safetensors", lora_files.kohya(LoraMaker(folders["sd15"])))
    says("it seems to be a LoRA, which is put on with lora=FILE", f"embedding={lora}")
    says(
        "it seems to be an autoencoder", f"embedding={folders['sd15'] / 'vae' / 'diffusion_pytorch_model.safetensors'}"
    )
    with pytest.raises(CheckpointError, match="it was made for Stable Diffusion XL"):
        made("sd15", folders, "a cat", f"embedding={parts}")
    says("there is no such file; copy it there", f"embedding={tmp_path / 'none.pt'}")
    says("is no .safetensors, .bin or .pt file", f"embedding={Path(__file__)}")
    (tmp_path / "empty.pt").touch()
    says("the file is empty", f"embedding={tmp_path / 'empty.pt'}")
    (tmp_path / "text.safetensors").write_text("a text" * 99)
    says("is not a readable safetensors file", f"embedding={tmp_path / 'text.safetensors'}")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(toy.read_bytes()[:-8])
    says("the file is cut short", f"embedding={cut}")
    says(
        "is no LoRA that is implemented; it seems to be a textual inversion, which is put on with embedding=FILE",
        f"lora={parts}",
    )


def test_a_pickle_runs_nothing(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    values = {"*": nn.Parameter(embedding_files.vectors(1, 32))}
    torch.save({"string_to_param": values, "name": Calls(os.system, COMMAND)}, "bad.pt")
    said = refusal(folders, "sd15", "embedding=bad.pt")
    assert "system, which no weights need, and is refused" in said
    torch.save({"string_to_param": values | {"two": nn.Parameter(torch.ones(1, 32))}, "name": "x"}, "two.pt")
    assert "has vectors of 2 words, and one is read" in refusal(folders, "sd15", "embedding=two.pt")
    assert not Path(MARK).exists()
