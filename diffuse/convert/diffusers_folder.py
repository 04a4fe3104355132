"""Writes a checkpoint as a folder in the diffusers layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuse.convert.checkpoint_content import CheckpointContent
from diffuse.convert.weights_writer import WrittenTensor, split_shards, write_weights
from diffuse.models.text_encoder.clip_tokenizer_files import read_tokenizer_files

_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}
_FILM_LIBRARIES = {  # of the components of films; the class is the one that their settings name
    "transformer": "diffusers",
    "vae": "diffusers",
    "audio_vae": "diffusers",
    "connectors": "ltx2",
    "vocoder": "ltx2",
}
_ABSENT = {  # what diffusers' pipelines take beside, and what is not there
    "StableDiffusion": ("safety_checker", "feature_extractor"),
    "StableDiffusionXL": ("text_encoder", "tokenizer"),
    "LTX2": (),
}
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_folder(folder: Path, content: CheckpointContent, shard_bytes: int, card: str) -> None:
    """Writes the files of a checkpoint into a folder that is empty.

    Raises:
        OSError: it cannot be written.
        CheckpointError: a weight cannot be read.
    """
    for name, tensors in content.tensors.items():
        _write_component(folder / name, _class_of(name, content), content.configs[name], tensors, shard_bytes)
    for name, source in content.tokenizers.items():
        _write_tokenizer(folder / name, source)
    _write_json(folder / "scheduler" / "scheduler_config.json", content.configs["scheduler"])
    _write_json(folder / "model_index.json", _index(content))
    (folder / "README.md").write_text(card, encoding="utf-8", errors="replace")  # names of files may be other bytes


def _index(content: CheckpointContent) -> dict[str, Any]:
    names = [*content.tensors, *content.tokenizers]
    # The flags of the pipeline; what is a list is a component.
    index = {key: value for key, value in content.index.items() if not isinstance(value, list)}
    kind = (
        "LTX2" if content.is_film else "StableDiffusionXL" if "XL" in str(index["_class_name"]) else "StableDiffusion"
    )
    index |= {name: list(_class_of(name, content)) for name in names}
    index["scheduler"] = ["diffusers", content.configs["scheduler"]["_class_name"]]
    index |= {name: [None, None] for name in _ABSENT[kind] if name not in names}
    return index | {"requires_safety_checker": False} if kind == "StableDiffusion" else index


def _class_of(name: str, content: CheckpointContent) -> tuple[str, str]:
    """Returns the library and the class of a component, as `model_index.json` names them."""
    if not content.is_film:
        return _CLASSES[name]
    if name in content.tokenizers:
        file = content.tokenizers[name] / "tokenizer_config.json"
        said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return "transformers", str(said.get("tokenizer_class", "GemmaTokenizer"))
    config = content.configs[name]
    if name in _FILM_LIBRARIES:
        return _FILM_LIBRARIES[name], str(config["_class_name"])
    return "transformers", str(next(iter(config.get("architectures") or ()), "Gemma3ForConditionalGeneration"))


def _write_component(
    folder: Path, named: tuple[str, str], config: Mapping[str, Any], tensors: Sequence[WrittenTensor], shard_bytes: int
) -> None:
    folder.mkdir()
    library, kind = named
    own = dict(config)
    if library == "transformers":
        own |= {"architectures": [kind], "model_type": own.get("model_type") or "clip_text_model"}
        dtypes = {tensor.dtype for tensor in tensors}
        own["torch_dtype"] = _DTYPES[dtypes.pop()] if len(dtypes) == 1 else "float32"
    else:
        own["_class_name"] = kind
    _write_json(folder / "config.json", own)
    stem = "model" if library == "transformers" else "diffusion_pytorch_model"
    shards = split_shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_weights(folder / f"{stem}.safetensors", shards[0], {"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        write_weights(folder / file, shard, {"format": "pt"})
        places |= {tensor.key: file for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_tokenizer(folder: Path, source: Path) -> None:
    """Copies a tokenizer's files; the words that come with this package are written as published ones are."""
    folder.mkdir()
    there = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    for file in there:
        shutil.copyfile(file, folder / file.name)
    if not {"vocab.json", "tokenizer.json"} & {file.name for file in there}:
        files = read_tokenizer_files(source)
        _write_json(folder / "vocab.json", dict(files.vocabulary))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in files.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
