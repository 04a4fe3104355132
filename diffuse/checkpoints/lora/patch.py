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
from diffuse.checkpoints.weights import read_weights
from diffuse.config.lora import LoraSetting
from diffuse.errors import CheckpointError


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
        factors: dict[tuple[str, str], Tensor] = {}
        device = next(iter(originals.values())).device if originals else torch.device("cpu")
        by_file: dict[str, tuple[LoraFile, dict[str, torch.dtype]]] = {}
        for key in originals:
            for part in self._parts[key]:
                own = by_file.setdefault(part.identity, (part.lora, {}))[1]
                own.update(dict.fromkeys(part.change.parts.values(), torch.float32))
        for identity, (lora, dtypes) in by_file.items():
            lora.check_unchanged(identity)
            try:
                tensors = lora.file.read(dtypes, device)
            except OSError as error:
                raise CheckpointError(f"{lora.source}: cannot be read: {error.strerror or error}") from None
            factors |= {(identity, name): tensor for name, tensor in tensors.items()}
        for key, original in originals.items():
            base = original.float().contiguous()
            total = base.clone()
            for part in self._parts[key]:
                own_factors = {name: factors[part.identity, each] for name, each in part.change.parts.items()}
                change = part.change
                add_change(total, base, change.form, own_factors, change.scale, part.strength)
            yield key, total.to(original.dtype)
