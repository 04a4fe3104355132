"""LoRA files that cannot be put on: each is refused in one line that says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffuse.checkpoints.lora.lora_file import LoraFile, layer_names
from diffuse.errors import CheckpointError

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
FC1 = "text_model.encoder.layers.0.mlp.fc1"
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "unet": {
        f"{ATTENTION}.to_q.weight": (32, 32),
        f"{ATTENTION}.to_k.weight": (32, 768),
        f"{ATTENTION}.to_out.0.weight": (32, 32),
        f"{ATTENTION}.to_out.0.bias": (32,),
        "down_blocks.0.resnets.0.conv1.weight": (32, 16, 3, 3),
    },
    "text_encoder": {f"{FC1}.weight": (64, 16), f"{FC1}.bias": (64,)},
}
Q, K = (f"lora_unet_{ATTENTION.replace('.', '_')}_to_{each}" for each in "qk")
TEXT = f"lora_te_{FC1.replace('.', '_')}"


def good() -> dict[str, Tensor]:
    """A file of rank 4 that fits."""
    return {
        f"{Q}.lora_down.weight": torch.ones(4, 32),
        f"{Q}.lora_up.weight": torch.ones(32, 4),
        f"{Q}.alpha": torch.tensor(2.0),
        f"{K}.lora_down.weight": torch.ones(4, 768),
        f"{K}.lora_up.weight": torch.ones(32, 4),
        f"{TEXT}.lora_down.weight": torch.ones(4, 16),
        f"{TEXT}.lora_up.weight": torch.ones(64, 4),
    }


def changes(folder: Path, tensors: Mapping[str, Tensor] | bytes, metadata: dict[str, str] | None = None) -> Any:
    file = folder / "a.safetensors"
    if isinstance(tensors, bytes):
        file.write_bytes(tensors)
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    return LoraFile.open(file, "a.safetensors").changes(layer_names(SHAPES), SHAPES, "model.source=M")


def without(*ends: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in good().items() if not key.endswith(ends)}


def for_sdxl() -> dict[str, Tensor]:
    return {f"{K}.lora_down.weight": torch.ones(4, 2048), f"{K}.lora_up.weight": torch.ones(32, 4)}


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "rank 0": (
        lambda: good() | {f"{Q}.lora_down.weight": torch.ones(0, 32), f"{Q}.lora_up.weight": torch.ones(32, 0)},
        "has the rank 0",
    ),
    "half the keys": (lambda: without(".lora_up.weight"), " only down, which make no change"),
    "every other key": (lambda: dict(list(good().items())[::2]), "which make no change"),
    "10,000 more layers": (
        lambda: good() | {f"lora_unet_up_{i}.lora_down.weight": torch.ones(1, 1) for i in range(10_000)},
        "and 9997 more, of which model.source=M has no layer",
    ),
    "10,000 more keys": (
        lambda: good() | {f"other.{i}": torch.ones(1) for i in range(10_000)},
        "has other.0, other.1, other.10 and 9997 more, of no form that is implemented (kohya)",
    ),
    "a mistyped layer": (
        lambda: (
            good() | {Q.replace("to_q", "to_qq") + f".lora_{each}.weight": torch.ones(2, 2) for each in ("up", "down")}
        ),
        f"the nearest is {Q}",
    ),
    "a model": (
        lambda: {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)},
        "is no LoRA that is implemented; it seems to be a whole checkpoint in a single file",
    ),
    "a U-Net": (lambda: {"down_blocks.0.resnets.0.conv1.weight": torch.ones(2)}, "it seems to be a U-Net"),
    "an inversion": (lambda: {"emb_params": torch.ones(2, 4)}, "it seems to be a textual inversion"),
    "another family by width": (
        for_sdxl,
        "does not fit model.source=M, whose unet has "
        f"{ATTENTION}.to_k.weight [32, 768]; it was made for Stable "
        "Diffusion XL",
    ),
    "Flux": (
        lambda: {
            f"transformer.single_transformer_blocks.0.attn.to_q.lora_{each}.weight": torch.ones(4, 4) for each in "AB"
        },
        "changes no layer of model.source=M; it was made for Flux: has transformer.single_transformer_blocks",
    ),
    "LTX-2": (
        lambda: {
            f"diffusion_model.transformer_blocks.0.audio_attn1.to_q.lora_{e}.weight": torch.ones(4, 4) for e in "AB"
        },
        "it was made for LTX-2",
    ),
    "NaN as alpha": (lambda: good() | {f"{Q}.alpha": torch.tensor(float("nan"))}, "the alpha of"),
    "a huge alpha": (lambda: good() | {f"{Q}.alpha": torch.tensor(1e300, dtype=torch.float64)}, "the alpha of"),
    "an alpha of two numbers": (lambda: good() | {f"{Q}.alpha": torch.ones(2)}, "should be one number, and is F32 [2]"),
    "a layer under two names": (
        lambda: (
            good()
            | {
                f"unet.{ATTENTION}.to_q.lora_{each}.weight": torch.ones(*([4, 32] if each == "A" else [32, 4]))
                for each in "AB"
            }
        ),
        "twice, also as",
    ),
    "whole numbers": (lambda: good() | {f"{Q}.lora_up.weight": torch.ones(32, 4).int()}, "is stored as I32"),
    "a change of no bias": (lambda: {f"{Q}.diff_b": torch.ones(32)}, "has no bias"),
    "OFT": (lambda: {f"{Q}.oft_blocks": torch.ones(2), f"{Q}.alpha": torch.tensor(1.0)}, "(OFT)"),
    "no bytes": (lambda: b"", "the file is empty"),
    "a text": (lambda: b"a lighthouse at dusk", "is not a readable safetensors file"),
    "no tensors": (lambda: {}, "is no LoRA"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    content, said = WRONG[case]
    with pytest.raises(CheckpointError) as caught:
        changes(tmp_path, content())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    changes(tmp_path, good())
    content = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="cut short"):
        changes(tmp_path, content[:-100])


def test_the_scale_is_alpha_over_the_rank_or_1(tmp_path: Path) -> None:
    scales = {change.module: change.scale for change in changes(tmp_path, good())}
    assert scales == {f"{ATTENTION}.to_q": 0.5, f"{ATTENTION}.to_k": 1.0, FC1: 1.0}
    whole = {
        f"{Q}.alpha": torch.tensor(8),
        f"{Q}.scalar": torch.tensor([0.5]),
    }  # a whole number, and LyCORIS' own factor
    assert {change.module: change.scale for change in changes(tmp_path, good() | whole)}[f"{ATTENTION}.to_q"] == 1.0


def of_peft() -> dict[str, Tensor]:
    return {f"base_model.model.{ATTENTION}.to_{n}.lora_{e}.weight": torch.ones(*shape)
            for n, width in (("q", 32), ("k", 768)) for e, shape in (("A", (4, width)), ("B", (32, 4)))}  # fmt: skip


def test_settings_of_peft_say_the_scale(tmp_path: Path) -> None:
    tensors = of_peft()
    assert {change.scale for change in changes(tmp_path, tensors)} == {1.0}
    config = tmp_path / "adapter_config.json"
    config.write_text('{"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 2}}')
    assert {change.module[-4:]: change.scale for change in changes(tmp_path, tensors)} == {"to_q": 2.0, "to_k": 0.5}
    config.write_text('{"r": 4, "lora_alpha": 8, "use_rslora": true}')
    assert {change.scale for change in changes(tmp_path, tensors)} == {4.0}
    config.write_text('{"r": 4, "lora_alpha": 8, "alpha_pattern": {".*to_(k|q)": 2}}')
    with pytest.raises(CheckpointError, match=r"alpha_pattern .* is an expression"):
        changes(tmp_path, tensors)


NO_SCALES = {
    '"lora_alpha": "64"': "lora_alpha='64', no number",
    '"use_rslora": "true"': "use_rslora='true', neither true nor false",
    '"alpha_pattern": {"attn2.to_k": true}': "alpha_pattern.attn2.to_k=True, no number",
    '"alpha_pattern": [2]': r"alpha_pattern=\[2\], no object",
}


@pytest.mark.parametrize("setting", NO_SCALES)
def test_settings_of_peft_that_are_no_scale_are_refused(setting: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(f'{{"r": 4, "lora_alpha": 8, {setting}}}')
    with pytest.raises(CheckpointError, match=f"adapter have {NO_SCALES[setting]}$"):
        changes(tmp_path, of_peft())


def test_settings_of_peft_tell_files_apart(tmp_path: Path) -> None:
    changes(tmp_path, of_peft())
    lora, config = LoraFile.open(tmp_path / "a.safetensors", "a"), tmp_path / "adapter_config.json"
    alone, digest = lora.identity, lora.digest()
    assert lora.record() == {"source": "a", "sha256": digest}
    found = {alone}
    for alpha in (4, 8):
        config.write_text(f'{{"lora_alpha": {alpha}}}')
        found.add(lora.identity)
        said = {"sha256": sha256(config.read_bytes()).hexdigest()}
        assert lora.record() == {"source": "a", "sha256": digest, "adapter_config": said}
    assert len(found) == 3
    with pytest.raises(CheckpointError, match="was replaced while it was in use"):
        lora.check_unchanged(alone)
    changes(tmp_path, good())  # whose scale they do not say
    assert "adapter_config" not in LoraFile.open(tmp_path / "a.safetensors", "a").record()
