"""Fits LoRA files to a model: which weights of which component each of them changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.lora.locate_lora import NamedLora
from diffuse.checkpoints.lora.lora_file import Change, Shapes, layer_names, layer_shapes
from diffuse.checkpoints.lora.patch import LoraPatch
from diffuse.config.lora import LORA_COMPONENTS
from diffuse.errors import ConfigError
from diffuse.models.lora.names import LayerNames
from diffuse.pipelines.components import Components, Role, with_role

_MAX_FILES = 32  # whose changes are kept for the next run


class LoraFitter:
    """The weights of one model that LoRA files may change.

    Args:
        components: the family's table.
        checkpoint: the model's.
    """

    def __init__(self, components: Components, checkpoint: Checkpoint) -> None:
        with_connectors = bool(with_role(components, Role.text_connectors))
        changed = (Role.denoiser, Role.text_connectors if with_connectors else Role.text_encoder)
        self._components = {name: each for name, each in components.items() if each.role in changed}
        self._checkpoint = checkpoint
        self._changes: dict[str, list[Change]] = {}

    def patches(self, loras: Sequence[NamedLora]) -> dict[str, LoraPatch]:
        """Returns the patch of each component that the files change; none where nothing of them is put on.

        Raises:
            ConfigError: a setting names a component or a part that the file does not change.
            CheckpointError: a file does not fit the model.
        """
        files = []
        for index, (lora, setting) in enumerate(loras):
            changes = self._changes_of(lora.identity, loras[index])
            self._check(index, loras[index], changes)
            files.append((lora, changes, setting))
        patches = {
            name: LoraPatch(self._checkpoint.part(name), name, each.rename, files)
            for name, each in self._components.items()
            if files
        }
        return {name: patch for name, patch in patches.items() if patch.weights}

    def _changes_of(self, identity: str, lora: NamedLora) -> list[Change]:
        if identity not in self._changes:
            if len(self._changes) >= _MAX_FILES:
                self._changes.pop(next(iter(self._changes)))
            model = f"model.source={self._checkpoint.source}"
            self._changes[identity] = lora.file.changes(self._names, self._shapes, model)
        return self._changes[identity]

    def _check(self, index: int, lora: NamedLora, changes: Sequence[Change]) -> None:
        setting = lora.setting
        for name in LORA_COMPONENTS:
            if getattr(setting, name) is not None and name not in self._components:
                has = ", ".join(self._components)
                raise ConfigError(
                    f"lora.{index}.{name}={getattr(setting, name):g}: the model has no {name}; it has {has}"
                )
        for part in setting.blocks:
            if not any(f"{change.module}.".startswith(f"{part}.") for change in changes):
                known = sorted({".".join(change.module.split(".")[:2]) for change in changes})
                shown = ", ".join(known[:6]) + (f" and {len(known) - 6} more" if len(known) > 6 else "")
                raise ConfigError(f"lora.{index}.blocks.{part}: {setting.source} changes nothing there, but in {shown}")

    @cached_property
    def _shapes(self) -> Mapping[str, Shapes]:
        renames: dict[str, Callable[[str], str | None]] = {name: each.rename for name, each in self._components.items()}
        return layer_shapes(self._checkpoint, renames)

    @cached_property
    def _names(self) -> LayerNames:
        return layer_names(self._shapes)
