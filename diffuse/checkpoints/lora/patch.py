"""A patch of LoRA files for one component: it computes changed weights from those of the checkpoint.

All is computed in float32, from the weight in the precision in which the component runs, and rounded to it once. Every
file's change is that of the checkpoint's own weight, so the order of the files does not matter but for rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.lora.factors import add_change
from diffuse.checkpoints.lora.lora_file import Change, LoraFile
from diffuse.checkpoints.tensor_reading import DTYPES
from diffuse.checkpoints.weights import read_weights
from diffuse.config.lora import LoraSetting
from diffuse.errors import CheckpointError
from diffuse.layers.quantized import WeightChange


@dataclass(frozen=True)
class _Part:
    """A change that is put on, and how much of it."""

    lora: LoraFile
    identity: str  # of the file when it was opened
    change: Change
    strength: float


class LoraPatch:
    """See `diffuse.device.patches.Patch`.

    Args:
        checkpoint: which holds the component's own weights.
        component: such as `unet`.
        rename: of the component, from published keys to the module's.
        files: the files, what each changes, and how much of it is put on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        component: str,
        rename: Callable[[str], str | None],
        files: Sequence[tuple[LoraFile, Sequence[Change], LoraSetting]],
    ) -> None:
        self._checkpoint, self._component, self._rename = checkpoint, component, rename
        self._parts: dict[str, list[_Part]] = {}
        for lora, changes, setting in files:
            identity = lora.identity
            for change in changes:
                strength = setting.strength(component, change.module)
                if change.component == component and strength:
                    self._parts.setdefault(change.key, []).append(_Part(lora, identity, change, strength))

    @cached_property
    def key(self) -> str:
        """Tells patches apart, by the files, what of them is put on, and how much."""
        parts = [
            (key, part.identity, part.strength, sorted(part.change.parts.values()))
            for key, own in sorted(self._parts.items())
            for part in own
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def weights(self) -> Collection[str]:
        """Lists the keys of the weights that it changes."""
        return self._parts.keys()

    def originals(
        self, keys: Collection[str], device: torch.device, dtype: torch.dtype
    ) -> Iterator[Mapping[str, Tensor]]:
        """Yields the checkpoint's own weights `[...]`, by their keys in the module, some at a time."""
        return read_weights(self._checkpoint, self._component, keys, device=device, dtype=dtype, rename=self._rename)

    def patched(self, originals: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields each weight's key, and what the files make of it, `[O, I, ...]`."""
        device = next(iter(originals.values())).device if originals else torch.device("cpu")
        factors = self._read(originals, device)
        for key, original in originals.items():
            change = _LoraChange(self._parts[key], factors)
            yield key, change.change(original.float(), change.factors).to(original.dtype)

    def changes(self, keys: Collection[str], device: torch.device) -> Iterator[tuple[str, WeightChange]]:
        """Yields each weight's key, and its change, with the factors on `device` as the files have them."""
        factors = self._read(keys, device, as_stored=True)
        for key in keys:
            yield key, _LoraChange(self._parts[key], factors)

    def _read(
        self, keys: Collection[str], device: torch.device, *, as_stored: bool = False
    ) -> dict[tuple[str, str], Tensor]:
        """Returns the factors of some weights' changes, by the identity of the file and their key in it."""
        factors: dict[tuple[str, str], Tensor] = {}
        by_file: dict[str, tuple[LoraFile, dict[str, torch.dtype]]] = {}
        for key in keys:
            for part in self._parts[key]:
                own = by_file.setdefault(part.identity, (part.lora, {}))[1]
                stored = part.lora.file.tensors
                for each in part.change.parts.values():
                    own[each] = DTYPES.get(stored[each].dtype, torch.float32) if as_stored else torch.float32
        for identity, (lora, dtypes) in by_file.items():
            lora.check_unchanged(identity)
            try:
                tensors = lora.file.read(dtypes, device)
            except OSError as error:
                raise CheckpointError(f"{lora.source}: cannot be read: {error.strerror or error}") from None
            if not torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all():
                name = next(name for name, tensor in tensors.items() if not tensor.isfinite().all())
                raise CheckpointError(f"{lora.source}: {name} holds NaN or an infinity; the file is damaged")
            factors |= {(identity, name): tensor for name, tensor in tensors.items()}
        return factors


class _LoraChange:
    """Changes one weight by all files; see `diffuse.layers.quantized.WeightChange`.

    Args:
        parts: the changes.
        factors: by the identity of a file and the key in it; those of other weights may be among them.
    """

    def __init__(self, parts: Sequence[_Part], factors: Mapping[tuple[str, str], Tensor]) -> None:
        self._parts = parts
        self.factors = {
            f"{index} {name}": factors[part.identity, key]
            for index, part in enumerate(parts)
            for name, key in part.change.parts.items()
        }

    def change(self, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """Returns the changed weight, float32 as `weight` `[O, I, ...]`."""
        base = weight.contiguous()
        total = base.clone()
        for index, part in enumerate(self._parts):
            own = {name: factors[f"{index} {name}"].float() for name in part.change.parts}
            add_change(total, base, part.change.form, own, part.change.scale, part.strength)
        return total
