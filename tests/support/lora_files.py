"""LoRA files in the spellings in circulation, each with the weights that it must make, computed in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ldm_files import component, config, unet_modules
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 4, 2.0
PARTS = ("unet", "text_encoder", "text_encoder_2")
Place = tuple[str, str]  # a component, and the path of a layer in it
Entries = dict[str, Tensor]


@dataclass
class LoraMaker:
    """Makes files for the checkpoint in a folder."""

    folder: Path
    weights: dict[Place, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(9)
        for part in PARTS:
            if (self.folder / part).is_dir():
                for key, tensor in component(self.folder, part).items():
                    if key.endswith(".weight") and tensor.ndim in (2, 4) and "embedding" not in key:
                        self.weights[part, key.removesuffix(".weight")] = tensor
        self.is_xl = (self.folder / "text_encoder_2").is_dir()
        self.ldm = dict(unet_modules(config(self.folder, "unet")))

    def rand(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) / 4

    def attention(self, parts: tuple[str, ...] = PARTS) -> list[Place]:
        return [place for place in self.weights if place[0] in parts and "attn" in place[1]]

    def kernels(self) -> list[Place]:
        return [place for place, weight in self.weights.items() if weight.shape[2:] == (3, 3)]

    def pair(self, place: Place) -> tuple[Tensor, Tensor]:
        weight = self.weights[place]
        down = self.rand(RANK, *weight.shape[1:])
        return down, self.rand(weight.shape[0], RANK, *[1] * (weight.ndim - 2))

    def kohya_name(self, place: Place, ldm: bool = False) -> str:
        part, module = place
        begin = {
            "unet": "lora_unet",
            "text_encoder": "lora_te1" if self.is_xl else "lora_te",
            "text_encoder_2": "lora_te2",
        }
        return f"{begin[part]}_{(self.ldm_name(module) if ldm and part == 'unet' else module).replace('.', '_')}"

    def ldm_name(self, module: str) -> str:
        ours = max((name for name in self.ldm if f"{module}.".startswith(f"{name}.")), key=len)
        return self.ldm[ours] + module[len(ours) :]


def low_rank(down: Tensor, up: Tensor, like: Tensor, scale: float) -> Tensor:
    return scale * (up.flatten(1).double() @ down.flatten(1).double()).reshape(like.shape)


Made = tuple[Entries, dict[str, str], dict[Place, Tensor]]  # tensors, header, and what the weights become


def peft(maker: LoraMaker, *, alpha: float | None = None) -> Made:
    entries, merged = {}, {}
    for part, module in maker.attention():
        down, up = maker.pair((part, module))
        entries |= {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}
        weight = maker.weights[part, module]
        merged[part, module] = weight + low_rank(down, up, weight, 1 if alpha is None else alpha / RANK)
    values = {f"{part}.{key}": value for part in PARTS for key, value in {"r": RANK, "lora_alpha": alpha}.items()}
    return entries, {} if alpha is None else {"lora_adapter_metadata": json.dumps(values)}, merged


def first_diffusers(maker: LoraMaker) -> Made:
    entries, merged = {}, {}
    for place in maker.attention(("unet",)):
        down, up = maker.pair(place)
        name = place[1].replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_")
        entries |= {f"unet.{name}_lora.down.weight": down, f"unet.{name}_lora.up.weight": up}
        merged[place] = maker.weights[place] + low_rank(down, up, maker.weights[place], 1)
    return entries, {}, merged


def kohya(
    maker: LoraMaker, *, ldm: bool = False, alpha: float | None = ALPHA, convolutions: bool = False, dora: str = ""
) -> Made:
    entries, merged = {}, {}
    places = [*maker.kernels(), *maker.attention(("unet",))] if convolutions else maker.attention()
    for place in places:
        down, up = maker.pair(place)
        weight, name = maker.weights[place], maker.kohya_name(place, ldm)
        entries |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            entries[f"{name}.alpha"] = torch.tensor(alpha)
        merged[place] = weight + low_rank(down, up, weight, 1 if alpha is None else alpha / RANK)
        if dora:
            axis = 0 if dora == "rows" else 1
            shape = [weight.shape[axis] if each == axis else 1 for each in range(weight.ndim)]
            magnitude = 0.5 + torch.rand(shape, generator=maker.generator)
            entries[f"{name}.dora_scale"] = magnitude
            others = [each for each in range(weight.ndim) if each != axis]
            value = merged[place]
            merged[place] = magnitude * value / value.pow(2).sum(others, keepdim=True).sqrt()
    return entries, {}, merged


def locon_mid(maker: LoraMaker) -> Made:
    entries, merged = {}, {}
    for place in maker.kernels():
        weight, name = maker.weights[place], maker.kohya_name(place)
        out, into = weight.shape[:2]
        down, mid, up = maker.rand(RANK, into, 1, 1), maker.rand(RANK, RANK, 3, 3), maker.rand(out, RANK, 1, 1)
        entries |= {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up}
        entries[f"{name}.alpha"] = torch.tensor(ALPHA)
        flat = [each.flatten(1).double() for each in (up, down)]
        kernel = torch.stack([flat[0] @ mid[..., x, y].double() @ flat[1] for x in range(3) for y in range(3)], -1)
        merged[place] = weight + ALPHA / RANK * kernel.reshape(weight.shape)
    return entries, {}, merged


def loha(maker: LoraMaker, *, tucker: bool = False) -> Made:
    entries, merged = {}, {}
    for place in maker.kernels() if tucker else maker.attention(("unet",)):
        weight, name = maker.weights[place], maker.kohya_name(place, ldm=maker.is_xl)
        out, into = weight.shape[:2]
        halves = []
        for number in "12":
            if tucker:
                a, b, core = maker.rand(RANK, out), maker.rand(RANK, into), maker.rand(RANK, RANK, 3, 3) * 4
                entries[f"{name}.hada_t{number}"] = core
                halves.append(torch.einsum("ijkl,jr,ip->prkl", core.double(), b.double(), a.double()))
            else:
                a, b = maker.rand(out, RANK) * 4, maker.rand(RANK, into) * 2
                halves.append(a.double() @ b.double())
            entries |= {f"{name}.hada_w{number}_a": a, f"{name}.hada_w{number}_b": b}
        entries[f"{name}.alpha"] = torch.tensor(ALPHA)
        merged[place] = weight + ALPHA / RANK * halves[0] * halves[1]
    return entries, {}, merged


def lokr(maker: LoraMaker, *, both_full: bool = False, kernels: bool = False) -> Made:
    entries, merged = {}, {}
    for place in maker.kernels() if kernels else maker.attention(("unet",)):
        weight, name = maker.weights[place], maker.kohya_name(place, ldm=maker.is_xl)
        out, into = weight.shape[:2]
        if out % 4 or into % 4:
            continue
        first = maker.rand(4, 4)
        if both_full:
            second = maker.rand(out // 4, into // 4)
            entries |= {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}
        else:
            a, b = maker.rand(out // 4, RANK), maker.rand(RANK, into // 4 * weight[0, 0].numel())
            second = a.double() @ b.double()
            entries |= {f"{name}.lokr_w1": first, f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
        entries[f"{name}.alpha"] = torch.tensor(ALPHA)
        scale = 1 if both_full else ALPHA / RANK
        merged[place] = weight + scale * torch.kron(first.double(), second.double()).reshape(weight.shape)
    return entries, {}, merged


def full(maker: LoraMaker) -> Made:
    entries, merged = {}, {}
    for place in maker.attention(("unet",)):
        change = maker.rand(*maker.weights[place].shape)
        entries[f"{maker.kohya_name(place)}.diff"] = change
        merged[place] = maker.weights[place] + change.double()
    return entries, {}, merged


DIALECTS: dict[str, Callable[[LoraMaker], Made]] = {
    "peft": peft,
    "peft with alpha": lambda maker: peft(maker, alpha=8.0),
    "first diffusers": first_diffusers,
    "kohya": kohya,
    "kohya without alpha": lambda maker: kohya(maker, alpha=None),
    "kohya of LDM": lambda maker: kohya(maker, ldm=True),
    "LoCon": lambda maker: kohya(maker, ldm=True, convolutions=True),
    "LoCon with a middle": locon_mid,
    "DoRA of rows": lambda maker: kohya(maker, dora="rows", convolutions=True),
    "DoRA of columns": lambda maker: kohya(maker, dora="columns", convolutions=True),
    "LoHa": loha,
    "LoHa with cores": lambda maker: loha(maker, tucker=True),
    "LoKr": lokr,
    "LoKr, both full": lambda maker: lokr(maker, both_full=True),
    "LoKr of kernels": lambda maker: lokr(maker, kernels=True),
    "full": full,
}


def write(path: Path, made: Made) -> Path:
    """Writes a file."""
    save_file({key: tensor.contiguous() for key, tensor in made[0].items()}, path, made[1] or None)
    return path


def merged_checkpoint(folder: Path, to: Path, merged: dict[Place, Tensor]) -> Path:
    """Writes a copy of a checkpoint with other weights."""
    import shutil

    shutil.copytree(folder, to)
    for part in {part for part, _ in merged}:
        (file,) = (to / part).glob("*.safetensors")
        save_file(component(to, part) | dict(_weights(part, merged)), file, {"format": "pt"})
    return to


def _weights(part: str, merged: dict[Place, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for (own, module), weight in merged.items():
        if own == part:
            yield f"{module}.weight", weight.float().contiguous()
