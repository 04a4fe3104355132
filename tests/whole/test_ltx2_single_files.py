"""LTX-2 in one file as its authors publish it: every setting and tensor of the folder, the same film, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import ltx2_files
import pytest
import torch
from command import diffuse
from diffusers.pipelines.ltx2 import LTX2Pipeline
from film_peers import REQUEST, TinyFilms, make
from safetensors.torch import load_file, save_file

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.model_sources import with_parts
from diffuse.checkpoints.single_file import SingleFile
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.errors import CheckpointError, DiffuseError
from diffuse.media.images import file_sha256
from diffuse.pipelines.components import choose_components
from diffuse.pipelines.ltx2_components import COMPONENTS
from diffuse.pipelines.ltx2_text_encoder import text_identity
from diffuse.run.model_auto import resolve_model
from diffuse.schema import Device, HardwareConfig, MemoryProfileConfig

CPU = torch.device("cpu")
SHORT = replace(REQUEST, num_inference_steps=1, width=64, guidance_scale=1.0, audio_guidance_scale=1.0)
OPTIONS = {"2.0": "ltx2", "2.3": "ltx2_3"}


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def films(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def file(films: TinyFilms, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ltx2_files.write(films.folder, tmp_path_factory.mktemp("file") / "ltx-2.safetensors")


def pipeline(checkpoint: Any) -> film_peers.ShortTexts:
    profile = MemoryProfileConfig(name="full_gpu", on_device=["*"], batch_size=4)
    return film_peers.ShortTexts(checkpoint, Memory(profile, hardware.detect(HardwareConfig(device=Device.cpu))))


def with_text_encoder(file: Path, folder: Path) -> Any:
    encoder = CheckpointFolder.open_component(folder, "text_encoder", source=str(folder), setting="model.text_encoder")
    return next(iter(with_parts([SingleFile(file, str(file)), encoder])))


def test_every_setting_and_tensor_is_that_of_the_folder(films: TinyFilms, file: Path) -> None:
    folder, single = CheckpointFolder.open(films.folder), SingleFile(file, str(file))
    tensors, _ = ltx2_files.read(films.folder)
    chosen = choose_components(COMPONENTS, folder)
    for part in ltx2_files.PARTS:
        kind = chosen[part].config
        assert kind is not None
        expected, found = (read_architecture(kind, each.config(part), part) for each in (folder, single))
        assert _without_unused(found) == _without_unused(expected), part
        (stored,) = single.tensor_files(part)
        dtypes = {key: tensors[part][key].dtype for key in stored.tensors}
        assert stored.tensors.keys() == tensors[part].keys()
        assert all(torch.equal(value, tensors[part][key]) for key, value in stored.read(dtypes, CPU).items())
    published = folder.config("scheduler")
    expected = {key: published.get(key, value) for key, value in single.config("scheduler").items()}
    assert single.config("scheduler") == expected
    assert resolve_model(["model=auto", f"model.source={file}"])[0] == f"model={OPTIONS[films.version]}"


def _without_unused(config: Any) -> Any:
    """Without what a folder says again, and the width of a text that the transformer of 2.3 has no use for."""
    names = {"spatial_compression_ratio": None, "temporal_compression_ratio": None}
    if getattr(config, "use_prompt_embeddings", True) is False:
        names["caption_channels"] = None
    return replace(config, **{name: value for name, value in names.items() if hasattr(config, name)})


def test_the_film_is_the_folders_to_the_bit(films: TinyFilms, file: Path) -> None:
    expected = make(films.ours(), SHORT)
    found = make(pipeline(with_text_encoder(file, films.folder)), SHORT)
    assert found.frames.tobytes() == expected.frames.tobytes()
    assert found.sound is not None and found.sound.tobytes() == expected.sound.tobytes()  # type: ignore[union-attr]
    assert any("use model=ltx2_distilled" in line for line in found.warnings)


@pytest.mark.parametrize("films", ["2.3"], indirect=True)
def test_it_is_converted_to_a_folder_that_diffusers_reads(films: TinyFilms, file: Path, tmp_path: Path) -> None:
    """With the whole text encoder. As one file a model of films is not written."""
    encoder = f"model.text_encoder.source={films.folder}"
    refused = diffuse("convert", file, tmp_path / "copy.safetensors", encoder, cwd=tmp_path)
    assert (refused.status, refused.err.count("\n")) == (2, 1) and "is written as a folder only" in refused.err
    done = diffuse("convert", file, tmp_path / "copy", encoder, cwd=tmp_path)
    assert done.status == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    copy, whole = (LTX2Pipeline.from_pretrained(each) for each in (tmp_path / "copy", films.folder))
    for part in (*ltx2_files.PARTS, "text_encoder"):
        expected, found = (getattr(each, part).state_dict() for each in (whole, copy))
        assert found.keys() == expected.keys(), part
        assert all(torch.equal(value, expected[key]) for key, value in found.items()), part
    assert make(pipeline(CheckpointFolder.open(tmp_path / "copy")), SHORT).frames.tobytes() == (
        make(films.ours(), SHORT).frames.tobytes()
    )


def test_of_a_text_encoder_that_it_lacks_it_says_nothing(films: TinyFilms, file: Path) -> None:
    """Embeddings from elsewhere are compared with those connectors that are there."""
    alone, beside = (
        text_identity(each) for each in (SingleFile(file, str(file)), with_text_encoder(file, films.folder))
    )
    folder = text_identity(CheckpointFolder.open(films.folder))
    assert (alone.text_encoder, beside.text_encoder) == (None, folder.text_encoder) and folder.text_encoder
    assert alone.connectors == beside.connectors == file_sha256(str(file))


def test_components_alone_are_read_under_each_name(films: TinyFilms, tmp_path: Path) -> None:
    tensors, configs = ltx2_files.read(films.folder)
    levels = len(configs["vae"]["block_out_channels"])
    whole = CheckpointFolder.open(films.folder)
    for part in ltx2_files.PARTS:
        named = {ltx2_files.authors_key(part, key, levels): each for key, each in tensors[part].items()}
        prefixes = ("model.diffusion_model.", "text_embedding_projection.", f"{part}.")
        bare = {next(key[len(p) :] for p in prefixes if key.startswith(p)): each for key, each in named.items()}
        for index, content in enumerate((named, tensors[part], *([] if part == "connectors" else [bare]))):
            file = tmp_path / f"{part}_{index}.safetensors"
            save_file(content, file)
            alone = SingleFile(file, file.name, None, f"model.{part}", part, model=whole)
            assert alone.config(part) == whole.config(part)
            (stored,) = alone.tensor_files(part)
            dtypes = dict.fromkeys(stored.tensors, torch.float32)
            found = stored.read(dtypes, CPU)
            assert found.keys() == tensors[part].keys(), (part, index)
            assert all(torch.equal(value, tensors[part][key]) for key, value in found.items()), (part, index)


@pytest.mark.parametrize("films", ["2.3"], indirect=True)
def test_a_file_in_fp8_with_scales_is_read(films: TinyFilms, file: Path, tmp_path: Path) -> None:
    key = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    content = load_file(file)
    scale = content[key].abs().max() / 448
    content |= {key: (content[key] / scale).to(torch.float8_e4m3fn), f"{key}_scale": scale}
    path = tmp_path / "fp8.safetensors"
    save_file(content, path, {"config": json.dumps(ltx2_files.header(ltx2_files.read(films.folder)[1]))})
    (stored,) = SingleFile(path, path.name).tensor_files("transformer")
    name = "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(stored.read({name: torch.float32}, CPU)[name], content[key].float() * scale)
    assert f"{name}_scale" not in stored.tensors


@pytest.mark.parametrize("films", ["2.3"], indirect=True)
def test_what_is_wrong_is_refused_in_a_line(films: TinyFilms, file: Path, tmp_path: Path) -> None:
    def refused(path: Path, parts: bool = True) -> str:
        with pytest.raises(DiffuseError) as caught:
            pipeline(with_text_encoder(path, films.folder) if parts else SingleFile(path, path.name))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    content = load_file(file)
    metadata = {"config": json.dumps(ltx2_files.header(ltx2_files.read(films.folder)[1]))}
    path = tmp_path / "a.safetensors"
    assert "holds no text_encoder; name one in model.text_encoder.source" in refused(file, parts=False)
    ltx2_files.write(films.folder, path, without=("vocoder",))
    assert "holds no vocoder; name one in model.vocoder.source" in refused(path)
    scale = {"model.diffusion_model.transformer_blocks.0.attn1.to_q.weight_scale": torch.ones(())}
    save_file(content | scale, path, metadata)
    assert "is quantised (model.diffusion_model.transformer_blocks.0.attn1.to_q.weight_scale)" in refused(path)
    save_file(content | {"other.weight": torch.ones(1)}, path, metadata)
    assert "has the tensor other.weight, which no component of its family uses" in refused(path)
    save_file(content, path)
    assert "its header has no settings of LTX-2" in refused(path)
    header = json.loads(metadata["config"])
    for own, said in (
        ([1], "the settings in its header are no JSON object"),
        ({"transformer": {}}, "its header has no settings of the audio_vae"),
        (header | {"vae": {"encoder_blocks": [["attn_x", {}]]}}, "has the blocks attn_x, which is not implemented"),
        (header | {"vae": {"encoder_blocks": 3}}, "the settings of its vae in the header cannot be read"),
        (header | {"transformer": header["transformer"] | {"adaptive_norm": "x"}}, "has adaptive_norm=x, which is not"),
    ):
        text = json.dumps(own)
        save_file(content, path, {"config": text})
        assert said in refused(path), text
    without_sound = {key: each for key, each in content.items() if "audio" not in key and "av_ca" not in key}
    save_file(without_sound, path, metadata)
    assert "is a model of films without sound (LTX-Video)" in refused(path)
    save_file({"conv_in.weight": torch.ones(4, 4)}, path)
    for part in ltx2_files.PARTS[:-1]:
        with pytest.raises(CheckpointError, match=rf"a: holds no {part}|has no autoencoder"):
            SingleFile(path, "a", None, f"model.{part}", part).config(part)
