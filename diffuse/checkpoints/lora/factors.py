"""The change of one weight, computed from its factors in float32.

With a scale `s = alpha / rank`, or 1 where there is no alpha, the weight `W` becomes

- LoRA: `W + s up down`; with a middle factor (LoCon) `W[o, i, x, y] + s up[o, r] mid[r, q, x, y] down[q, i]`;
- LoHa: `W + s (w1_a w1_b) * (w2_a w2_b)`, element by element;
- LoKr: `W + s kron(w1, w2)`, each of which may be a product; where neither is, `s` is 1;
- full: `W + diff`.

DoRA gives the sum `V` of any of these the magnitude `m` of each row, or column: it becomes `m V / |V|`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]
"""The factors of a change by name, `[...]` each."""


def factor_rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Returns the rank of a change from its factors' shapes; None where it has none."""
    for part, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in shapes:
            shape = shapes[part]
            return shape[axis] if shape else 0
    return None


def is_fitting(form: str, shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]) -> bool:
    """Tells whether factors of these shapes make a change of a weight `[O, I, *sides]`."""
    try:
        return _is_fitting(form, shapes, weight)
    except (IndexError, KeyError):  # a factor has not the axes that its form needs
        return False


def _is_fitting(form: str, shapes: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]) -> bool:
    rows, columns, inner = weight[0], (weight[1] if len(weight) > 1 else 1), math.prod(weight[1:])
    sides = weight[2:]
    if form == "full":
        return all(shape == weight for shape in shapes.values())
    if form == "LoRA":
        down, up = shapes["down"], shapes["up"]
        if "mid" in shapes:
            expected = (up[1], down[0], *sides)
            return shapes["mid"] == expected and _is(up, rows, up[1]) and _is(down, down[0], columns)
        return math.prod(up[2:]) == 1 and up[:2] == (rows, down[0]) and math.prod(down[1:]) == inner
    if form == "LoHa":
        for number in (1, 2):
            a, b = shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"]
            t = shapes.get(f"hada_t{number}")
            if len(a) != 2 or len(b) != 2:
                return False
            if t is None and not (a[0] == rows and a[1] == b[0] and b[1] == inner):
                return False
            if t is not None and not (t == (a[0], b[0], *sides) and a[1] == rows and b[1] == columns):
                return False
        return True
    first = shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
    if "lokr_w1" not in shapes and shapes["lokr_w1_a"][1] != shapes["lokr_w1_b"][0]:
        return False
    if "lokr_w2" in shapes:
        second = shapes["lokr_w2"]
    else:
        a, b = shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        if "lokr_t2" in shapes:
            second = (a[1], b[1], *shapes["lokr_t2"][2:])
            if shapes["lokr_t2"][:2] != (a[0], b[0]):
                return False
        else:
            second = (a[0], b[1])
            if a[1] != b[0]:
                return False
    return len(first) == 2 and first[0] * second[0] == rows and first[1] * math.prod(second[1:]) == inner


def is_fitting_magnitude(part: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Tells whether DoRA's magnitudes of this shape are those of a weight `[O, I, *sides]`."""
    if part == "dora_scale" and _is_by_column(shape, weight):
        return math.prod(shape) == weight[1]
    return math.prod(shape) == weight[0]


def _is_by_column(magnitude: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    return len(magnitude) > 1 and len(weight) > 1 and magnitude[0] == 1 and magnitude[1] == weight[1] != 1


def _is(shape: tuple[int, ...], rows: int, columns: int) -> bool:
    """Tells whether a factor is a matrix of this size, perhaps as a 1 x 1 convolution."""
    return shape[:2] == (rows, columns) and math.prod(shape[2:]) == 1


def add_change(total: Tensor, base: Tensor, form: str, factors: Factors, scale: float, strength: float) -> None:
    """Adds a change to `total`, in place.

    Args:
        total: float32 `[O, I, *sides]`, contiguous: the weight, and perhaps other changes.
        base: float32, the weight `[O, I, *sides]` alone.
        form: see `keys.form`.
        factors: float32.
        scale: `s`.
        strength: by which the whole change is multiplied; 1 makes of the weight what the file was trained to make.
    """
    magnitude = factors.get("magnitude", factors.get("dora_scale"))
    if magnitude is None and form == "LoRA" and "mid" not in factors:
        down, up = factors["down"].flatten(1), factors["up"].flatten(1)
        total.view(total.shape[0], -1).addmm_(up, down, alpha=strength * scale)
        return
    delta = _delta(form, factors).reshape(base.shape)
    if magnitude is None:
        total.add_(delta, alpha=strength * scale)
        return
    merged = torch.add(base, delta, alpha=scale)
    by_column = "dora_scale" in factors and _is_by_column(tuple(magnitude.shape), tuple(merged.shape))
    matrix = merged.transpose(0, 1).flatten(1) if by_column else merged.flatten(1)
    norm = matrix.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    ratio = magnitude.reshape(-1) / norm
    shape = (1, -1, *[1] * (merged.ndim - 2)) if by_column else (-1, *[1] * (merged.ndim - 1))
    total.add_(merged.mul_(ratio.view(shape)).sub_(base), alpha=strength)


def _delta(form: str, factors: Factors) -> Tensor:
    if form == "full":
        return next(iter(factors.values()))
    if form == "LoRA":
        down, up = factors["down"].flatten(1), factors["up"].flatten(1)
        if "mid" not in factors:
            return up @ down
        return torch.einsum("or,rq...,qi->oi...", up, factors["mid"], down)
    if form == "LoHa":
        return _half(factors, 1) * _half(factors, 2)
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        second = factors["lokr_w2"]
    elif "lokr_t2" in factors:
        second = _tucker(factors["lokr_t2"], factors["lokr_w2_a"], factors["lokr_w2_b"])
    else:
        second = factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


def _half(factors: Factors, number: int) -> Tensor:
    a, b = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
    core = factors.get(f"hada_t{number}")
    return a @ b if core is None else _tucker(core, a, b)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns `[O, I, *sides]` of a core `[r, q, *sides]`, `a` `[r, O]` and `b` `[q, I]`."""
    return torch.einsum("rq...,ro,qi->oi...", core, a, b)
