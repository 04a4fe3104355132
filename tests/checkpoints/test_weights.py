"""Filling modules: every published tensor arrives once, or the error names the file and the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import WHOLE, Net, checkpoint, fill, message, sharded, tensors
from torch import Tensor, nn

from diffuse.checkpoints.weights import load_weights

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS[1:])
def test_every_tensor_arrives_in_the_wanted_dtype(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    source = tensors(stored)
    module = fill(checkpoint(tmp_path, {WHOLE: source}), wanted)
    state = module.state_dict()
    assert state.keys() == source.keys()
    for key, value in source.items():
        assert state[key].dtype == wanted
        assert torch.equal(state[key], value.to(wanted)), key
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_nothing_is_allocated_before_the_weights_are_there(tmp_path: Path) -> None:
    def build() -> nn.Module:
        module = Net()
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        return module

    load_weights(build, checkpoint(tmp_path, {WHOLE: tensors()}), "unet", device="cpu", dtype=torch.float32)


def test_some_parameters_stay_in_float32(tmp_path: Path) -> None:
    source = tensors(torch.float16)
    module = fill(
        checkpoint(tmp_path, {WHOLE: source}), torch.bfloat16, keep_float32=lambda key: key.startswith("norm")
    )
    assert module.norm.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert module.conv.weight.dtype == torch.bfloat16  # type: ignore[union-attr]


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    before = torch.random.get_rng_state()
    fill(found)
    assert torch.equal(before, torch.random.get_rng_state())


def changed(change: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    source = tensors()
    change(source)
    return source


UNFIT = {
    "missing": (lambda t: t.pop("out.weight"), "lacks out.weight"),
    "missing many": (lambda t: [t.pop(key) for key in list(t)[1:]], "and 3 more"),
    "extra": (lambda t: t.update({"more.bias": torch.zeros(2)}), "has more.bias, which"),
    "shape": (lambda t: t.update({"out.weight": torch.zeros(5, 9)}), "out.weight has the shape [5, 9] where"),
    "int8": (lambda t: t.update({"out.weight": torch.zeros(5, 8, dtype=torch.int8)}), "out.weight is stored as I8"),
    "uint8": (lambda t: t.update({"out.weight": torch.zeros(5, 8, dtype=torch.uint8)}), "out.weight is stored as U8"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, kind: str) -> None:
    change, says = UNFIT[kind]
    found = checkpoint(tmp_path, {WHOLE: changed(change)})
    text = message(lambda: fill(found))
    assert text.startswith(str(tmp_path / "unet" / WHOLE)) and says in text


def test_renaming(tmp_path: Path) -> None:
    source = {f"net.{key}": value for key, value in tensors().items()} | {"net.position_ids": torch.arange(7)}
    found = checkpoint(tmp_path, {WHOLE: source})
    module = fill(found, rename=lambda key: None if key.endswith("position_ids") else key.removeprefix("net."))
    assert torch.equal(module.out.weight, source["net.out.weight"])  # type: ignore[union-attr,arg-type]


def test_the_same_tensor_under_two_names(tmp_path: Path) -> None:
    source = tensors()
    found = checkpoint(tmp_path, {WHOLE: source | {"net.out.weight": source["out.weight"].clone()}})
    text = message(lambda: fill(found, rename=lambda key: key.removeprefix("net.")))
    assert "net.out.weight" in text and "there twice" in text


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    files = sharded()
    first, second = [name for name in files if name.endswith(".safetensors")]
    files[second] = files[second] | files[first]
    assert "there twice" in message(lambda: fill(checkpoint(tmp_path, files)))


class Positions(nn.Module):
    def __init__(self, with_hook: bool) -> None:
        super().__init__()
        self.register_buffer("angles", torch.arange(4.0), persistent=False)
        if with_hook:
            self.materialize = self._fill

    def _fill(self) -> None:
        self.angles = torch.arange(4.0, dtype=torch.float64)


class WithPositions(Net):
    def __init__(self, with_hook: bool = True) -> None:
        super().__init__()
        self.positions = Positions(with_hook)


def test_buffers_outside_the_file_are_made_by_their_module(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    module = load_weights(WithPositions, found, "unet", device="cpu", dtype=torch.bfloat16)
    assert torch.equal(module.positions.angles, torch.arange(4.0, dtype=torch.float64))  # type: ignore[union-attr,arg-type]
    with pytest.raises(RuntimeError, match=r"Positions positions.*materialize"):
        load_weights(lambda: WithPositions(False), found, "unet", device="cpu", dtype=torch.bfloat16)
