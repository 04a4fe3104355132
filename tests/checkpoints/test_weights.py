"""Checkpoints in folders: what is found, what is refused and how that is said, and how weights get into a module."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuse.checkpoints.folder import Checkpoint
from diffuse.checkpoints.layout import variants
from diffuse.checkpoints.weights import architecture, load
from diffuse.errors import CheckpointError


class Net(nn.Module):
    """Small, with the kinds of tensor that matter: weights, a bias, a norm, a persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8, momentum=None)
        del self.norm.num_batches_tracked
        self.out = nn.Linear(8, 5, bias=False)


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(value.shape, generator=generator).to(dtype) for key, value in Net().state_dict().items()}


def checkpoint(folder: Path, files: Mapping[str, Any], component: str = "unet", **options: Any) -> Checkpoint:
    """A checkpoint of one component: tensors become safetensors files, dicts JSON, bytes are written as they are."""
    (folder / component).mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", component: ["diffusers", "X"]}))
    for name, content in {"config.json": {}, **files}.items():
        path = folder / component / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif any(isinstance(value, Tensor) for value in content.values()):
            save_file(content, path)
        else:
            path.write_text(json.dumps(content))
    return Checkpoint.open(folder, **options)


def fill(found: Checkpoint, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    return load(Net, found, "unet", device="cpu", dtype=dtype, **options)


def message(action: Callable[[], Any]) -> str:
    """The one line an error is told in."""
    with pytest.raises(CheckpointError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


WHOLE = "diffusion_pytorch_model.safetensors"
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

    load(build, checkpoint(tmp_path, {WHOLE: tensors()}), "unet", device="cpu", dtype=torch.float32)


def test_a_tensor_larger_than_the_window_is_read_whole(tmp_path: Path) -> None:
    source = {"weight": torch.randn(2500, 3400, generator=torch.Generator().manual_seed(1)).half()}
    found = checkpoint(tmp_path, {WHOLE: source})
    module = load(lambda: nn.Linear(3400, 2500, bias=False), found, "unet", device="cpu", dtype=torch.float32)
    assert torch.equal(module.weight, source["weight"].float())  # type: ignore[arg-type]


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


def sharded(variant: str = "", style: str = "before") -> dict[str, Any]:
    source = tensors(torch.float16 if variant else torch.float32)
    keys = list(source)
    dot = f".{variant}" if variant else ""
    names = [
        f"model{dot if style == 'before' else ''}-0000{i}-of-00002{dot if style == 'after' else ''}.safetensors"
        for i in (1, 2)
    ]
    parts = [{key: source[key] for key in keys[i::2]} for i in (0, 1)]
    index = {"metadata": {}, "weight_map": {key: names[i] for i in (0, 1) for key in parts[i]}}
    index_name = f"model.safetensors.index{dot}.json" if style == "before" else f"model.safetensors{dot}.index.json"
    return {names[0]: parts[0], names[1]: parts[1], index_name: index}


@pytest.mark.parametrize(("variant", "style"), [("", "before"), ("fp16", "before"), ("fp16", "after")])
def test_shards_are_read_through_their_index(tmp_path: Path, variant: str, style: str) -> None:
    found = checkpoint(tmp_path, sharded(variant, style), variant=variant or None)
    assert len(found.files("unet")) == 2
    state = fill(found).state_dict()
    source = tensors(torch.float16 if variant else torch.float32)
    assert all(torch.equal(state[key], value.float()) for key, value in source.items())


def test_variants_are_told_apart() -> None:
    names = [
        "config.json",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model-00001-of-00002.bf16.safetensors",
        "model-00002-of-00002.bf16.safetensors",
        "model.safetensors.index.bf16.json",
        "openvino_model.safetensors",
    ]
    assert variants(names) == {
        None: ("diffusion_pytorch_model.safetensors",),
        "fp16": ("diffusion_pytorch_model.fp16.safetensors",),
        "non_ema": ("diffusion_pytorch_model.non_ema.safetensors",),
        "bf16": (
            "model.safetensors.index.bf16.json",
            "model-00001-of-00002.bf16.safetensors",
            "model-00002-of-00002.bf16.safetensors",
        ),
    }


def test_the_wanted_variant_is_read(tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in tensors().items()}
    files = {WHOLE: tensors(), "diffusion_pytorch_model.fp16.safetensors": other}
    plain, half = checkpoint(tmp_path, files), checkpoint(tmp_path, files, variant="fp16")
    assert torch.equal(fill(half).out.weight, fill(plain).out.weight + 1)  # type: ignore[union-attr,operator,arg-type]
    assert "no variant bf16" in (text := message(lambda: checkpoint(tmp_path, {}, variant="bf16").files("unet")))
    assert "fp16" in text and "model.variant=null" in text


def test_a_component_without_the_variant_is_read_plain(tmp_path: Path) -> None:
    checkpoint(tmp_path, {"model.safetensors": tensors()}, component="text_encoder")
    found = checkpoint(tmp_path, {"diffusion_pytorch_model.fp16.safetensors": tensors()}, variant="fp16")
    assert [path.name for path in found.files("text_encoder")] == ["model.safetensors"]


def test_only_a_variant_is_published(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {"diffusion_pytorch_model.fp16.safetensors": tensors()})
    assert message(lambda: found.files("unet")).endswith("present: fp16; set model.variant=fp16")


DAMAGED = {
    "empty": (b"", "is empty"),
    "truncated": (None, "cut short"),
    "garbage": (b"\x10\0\0\0\0\0\0\0 garbage, garbage", "not a readable safetensors file"),
    "garbage header length": (b"\xff" * 64, "not a readable safetensors file"),
    "a few bytes": (b"abc", "not a readable safetensors file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    content, says = DAMAGED[kind]
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    path = tmp_path / "unet" / WHOLE
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    text = message(lambda: fill(found))
    assert text.startswith(str(path)) and says in text


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
    "float8": (
        lambda t: t.update({"out.weight": torch.zeros(5, 8).to(torch.float8_e4m3fn)}),
        "out.weight is stored as F8_E4M3",
    ),
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


def test_a_missing_shard_and_a_missing_index(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, sharded())
    (tmp_path / "unet" / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: is missing" in message(lambda: fill(found))
    (tmp_path / "unet" / "model.safetensors.index.json").unlink()
    assert "its index is missing" in message(lambda: fill(Checkpoint.open(tmp_path)))


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/secret.safetensors", "..\\secret.safetensors"])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    files = {"model-00001-of-00001.safetensors": tensors(), "model.safetensors.index.json": {"weight_map": {"x": name}}}
    save_file(tensors(), tmp_path / "secret.safetensors")
    assert "outside its folder" in message(lambda: checkpoint(tmp_path / "model", files).files("unet"))


def test_pickles_are_refused(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {"diffusion_pytorch_model.bin": b"\x80\x02."})
    text = message(lambda: found.files("unet"))
    assert "diffusion_pytorch_model.bin" in text and "refused" in text and ".safetensors" in text


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    files = {
        "model-00001-of-00001.safetensors": tensors(),
        "model.safetensors.index.json": {"weight_map": {"x": "a.bin"}},
    }
    assert "not a safetensors file" in message(lambda: checkpoint(tmp_path, files).files("unet"))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    found = checkpoint(tmp_path, {"config.json": content})
    assert message(lambda: found.config("unet")).startswith(f"{tmp_path}/unet/config.json: is not")


def test_what_is_not_a_checkpoint_is_recognised(tmp_path: Path) -> None:
    empty, single, whole = tmp_path / "empty", tmp_path / "single", tmp_path / "whole" / "inner"
    empty.mkdir()
    single.mkdir()
    save_file(tensors(), single / "v2-1.safetensors")
    checkpoint(whole, {WHOLE: tensors()})
    assert "has no model_index.json" in message(lambda: Checkpoint.open(empty))
    assert "v2-1.safetensors" in (text := message(lambda: Checkpoint.open(single))) and "converted" in text
    assert f"set model.source={whole}" in message(lambda: Checkpoint.open(whole.parent))
    assert "its parent folder is one" in message(lambda: Checkpoint.open(whole / "unet"))


def test_components(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    index = {"_class_name": "P", "unet": ["d", "U"], "safety_checker": ["s", "C"], "vae": [None, None], "tag": True}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "vae").mkdir()
    (tmp_path / "latent_upsampler").mkdir()
    assert found.components == ["unet"]
    assert [name for name in ("unet", "vae", "text_encoder", "latent_upsampler") if found.has(name)] == [
        "unet",
        "latent_upsampler",
    ]
    assert "has no folder text_encoder" in message(lambda: found.config("text_encoder"))
    assert "has no folder text_encoder" in message(lambda: found.files("text_encoder"))
    with pytest.raises(CheckpointError, match="outside"):
        found.path("../x")


def test_identity_and_digest_follow_the_contents(tmp_path: Path) -> None:
    def again() -> Checkpoint:
        return Checkpoint.open(tmp_path)

    found = checkpoint(tmp_path, {WHOLE: tensors()})
    identity, digest = found.identity, found.digest()
    assert (again().identity, again().digest()) == (identity, digest)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    (tmp_path / "unet" / "config.json").write_text('{"a": 1}')
    assert again().identity != identity
    assert again().digest() == digest
    source = tensors()
    source["out.weight"][0, 0] += 1  # the header stays the same
    save_file(source, tmp_path / "unet" / WHOLE)
    os.utime(tmp_path / "unet" / WHOLE, (1, 1))
    assert again().digest() != digest


def test_a_replaced_file_makes_another_identity(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, {WHOLE: tensors()})
    identity = found.identity
    source = tensors()
    source["out.weight"][0, 0] += 1
    save_file(source, tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "unet" / WHOLE)
    assert found.identity != identity


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
    module = load(WithPositions, found, "unet", device="cpu", dtype=torch.bfloat16)
    assert torch.equal(module.positions.angles, torch.arange(4.0, dtype=torch.float64))  # type: ignore[union-attr,arg-type]
    with pytest.raises(RuntimeError, match=r"Positions positions.*materialize"):
        load(lambda: WithPositions(False), found, "unet", device="cpu", dtype=torch.bfloat16)


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from diffuse.checkpoints.weights import Checkpoint, load
torch.set_num_threads(1)
def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
def build():
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(6)))
found = Checkpoint.open(Path(sys.argv[1]))
load(lambda: nn.Linear(8, 8, bias=False), found, "small", device="cpu", dtype=torch.float32)
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
module = load(build, found, "unet", device="cpu", dtype=getattr(torch, sys.argv[2]))
for parameter in module.parameters():
    parameter.sum()
size = sum(p.numel() * p.element_size() for p in module.parameters())
print((resident("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "float32"), ("float16", "float32"), ("float32", "bfloat16")]
)
def test_memory_never_holds_a_second_copy(tmp_path: Path, stored: str, wanted: str) -> None:
    source = {f"{i}.weight": torch.ones(2048, 2048, dtype=getattr(torch, stored)) for i in range(6)}
    checkpoint(tmp_path, {WHOLE: {"weight": torch.ones(8, 8).half()}}, component="small")
    checkpoint(tmp_path, {WHOLE: source})
    ratio = float(subprocess.check_output([sys.executable, "-c", MEASURE, str(tmp_path), wanted], text=True))
    # The buffer and torch's own code that is first run here count too, which is little beside a real model.
    assert ratio < 1.1 + 16e6 / (6 * 2048 * 2048 * getattr(torch, wanted).itemsize)


@dataclass(frozen=True)
class Settings:
    width: int = 8
    scale: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    heads: int | tuple[int, ...] = 1
    shift: float | None = None
    linear: bool = False
    kind: str = "a"

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"act_fn": ("silu", "swish"), "pad": (1, (0, 1)), "flag": (False,)}
    IGNORED: ClassVar[frozenset[str]] = frozenset({"dropout"})


@dataclass(frozen=True)
class Needy:
    width: int


def test_architecture_takes_the_published_values() -> None:
    raw = {
        "_class_name": "Net",
        "width": 16,
        "scale": 2,
        "sizes": [3, 4],
        "heads": [5, 6],
        "linear": True,
        "act_fn": "swish",
        "pad": [0, 1],
        "flag": False,
        "dropout": 0.5,
        "unknown": None,
        "unknown_too": [],
        "unknown_three": False,
    }
    result = architecture(Settings, raw, "unet/config.json")
    assert result == Settings(width=16, scale=2.0, sizes=(3, 4), heads=(5, 6), linear=True)
    assert isinstance(result.scale, float)
    assert architecture(Settings, {}, "") == Settings()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu' is not implemented, only 'silu' or 'swish'"),
        ({"flag": 0}, "flag=0 is not implemented"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep' is not implemented"),
        ({"dual": True}, "dual=True is not implemented"),
        ({"unknown": 0}, "unknown=0 is not implemented"),
        ({"width": "16"}, "width='16' should be an integer"),
        ({"width": 16.5}, "width=16.5 should be an integer"),
        ({"width": True}, "width=True should be an integer"),
        ({"width": None}, "width=None should be an integer"),
        ({"linear": 1}, "linear=1 should be true or false"),
        ({"sizes": 3}, "sizes=3 should be a list of an integer"),
        ({"heads": ["a"]}, "heads=['a'] should be an integer or a list of an integer"),
    ],
)
def test_architecture_refuses_by_name(raw: dict[str, Any], says: str) -> None:
    text = message(lambda: architecture(Settings, raw, "FOLDER/unet/config.json"))
    assert text.startswith("FOLDER/unet/config.json: ") and says in text


def test_architecture_needs_what_has_no_default() -> None:
    assert "lacks the setting width" in message(lambda: architecture(Needy, {}, "config.json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from([*Settings.__dataclass_fields__, "act_fn", "pad", "x"]), JSON, max_size=4))
def test_architecture_either_fits_or_says_why(raw: dict[str, Any]) -> None:
    try:
        result = architecture(Settings, raw, "config.json")
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(result.width, int) and isinstance(result.sizes, tuple) and isinstance(result.kind, str)
