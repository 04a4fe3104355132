"""A checkpoint, or one component of it, in a single safetensors file in the layout of the first implementations.

It is read where it lies: tensors keep their places in the file, and only their names are others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffuse
from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.folder import file_digest, file_state
from diffuse.checkpoints.safetensors_file import SafetensorsFile, StoredTensor, header_bytes, unreadable
from diffuse.errors import CheckpointError
from diffuse.models.single_file.describe import describe_checkpoint, describe_component
from diffuse.models.single_file.origin import Description, Origin

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_VOCABULARY = Path(diffuse.__file__).parent / "models" / "single_file" / "vocabulary"
_OF_THE_MODEL = ("scaling_factor", "shift_factor", "force_upcast", "sample_size", "upcast_attention")
_FILE_NAMES = ("model_index.json", "config.json", "scheduler_config.json")


@dataclass(frozen=True)
class RenamedFile:
    """The tensors of one component in a single file, under their published keys; see `checkpoint.TensorFile`."""

    file: SafetensorsFile
    transposed: frozenset[str]

    @property
    def name(self) -> str:
        """Names the file in messages."""
        return self.file.name

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Maps each published key to its declaration."""
        tensors = dict(self.file.tensors)
        for key in self.transposed:
            tensors[key] = replace(tensors[key], shape=tensors[key].shape[::-1])
        return tensors

    def read(self, dtypes: Mapping[str, torch.dtype], device: torch.device) -> dict[str, Tensor]:
        """See `checkpoint.TensorFile`."""
        tensors = self.file.read(dtypes, device)
        for key in self.transposed & tensors.keys():
            tensors[key] = tensors[key].t().contiguous()
        return tensors

    def stays_in_file(self, key: str, dtype: torch.dtype) -> bool:
        """See `checkpoint.TensorFile`."""
        return key not in self.transposed and self.file.stays_in_file(key, dtype)


@dataclass(frozen=True)
class SingleFile:
    """A whole checkpoint in one file, or one component of it; see `checkpoint.Checkpoint`.

    Args:
        file: on this machine.
        source: what the user asked for.
        revision: the commit on the hub, None for a file of this machine.
        setting: what the source's fields begin with in the configuration, for messages.
        component: the only component that is taken from here.
        parts: component -> the checkpoint that it is taken from instead.
        model: the checkpoint whose component this one replaces: it gives the settings that no tensor tells.
    """

    file: Path
    source: str
    revision: str | None = None
    setting: str = "model"
    component: str | None = None
    parts: Mapping[str, Checkpoint] = field(default_factory=dict)
    model: Checkpoint | None = None

    variant: None = None
    """A file has no variants."""

    def part(self, component: str) -> Checkpoint:
        """Returns the checkpoint that `component` is taken from: this one, or one of `parts`."""
        return self.parts.get(component, self)

    @property
    def index(self) -> dict[str, Any]:
        """Is what `model_index.json` would say."""
        return self._description.index

    @property
    def components(self) -> list[str]:
        """Lists the components that are taken from here."""
        if self.component is not None:
            return [self.component]
        return [name for name in self._description.origins if name not in self.parts]

    @property
    def notes(self) -> list[str]:
        """Is a line on each thing that was found out about the file and could be otherwise."""
        return [] if self.component else [f"{self.source}: {note}" for note in self._description.notes]

    def config(self, component: str) -> dict[str, Any]:
        """Returns what the published configuration of a component would say.

        Raises:
            CheckpointError: the file holds no such component.
        """
        config = self._description.configs.get(component)
        if config is None:
            raise self._no_component(component)
        if self.component is not None and self.model is not None:
            theirs = self.model.config(component)
            config = config | {key: theirs[key] for key in _OF_THE_MODEL if key in theirs}
        return config

    def path(self, relative: str) -> Path:
        """Returns the folder of a tokenizer, whose words are those of CLIP; other small files a single file has not."""
        name = relative.partition("/")[0]
        if name in ("tokenizer", "tokenizer_2"):
            return _VOCABULARY / ("open_clip" if self._pads_with_a_word(name) else "clip")
        return self.file.parent / relative if relative in _FILE_NAMES else self.file

    def tensor_files(self, component: str) -> list[RenamedFile]:
        """Returns the component's tensors under their published keys; no weight is read.

        Raises:
            CheckpointError: the file holds no such component, or is damaged.
        """
        origins = self._description.origins.get(component)
        if origins is None:
            raise self._no_component(component)
        stored = self._opened.tensors
        renamed = {key: _place(stored[origin.key], origin) for key, origin in origins.items()}
        transposed = frozenset(key for key, origin in origins.items() if origin.transposed)
        return [RenamedFile(SafetensorsFile(self.file, self.source, renamed), transposed)]

    def display_name(self, component: str, file: str = "") -> str:
        """Returns the name of a component, or of a file of it, for messages."""
        return f"{self.source}: {component}"

    @property
    def identity(self) -> str:
        """Tells checkpoints apart within a process: a file that was replaced has another identity."""
        digest = hashlib.sha256()
        try:
            digest.update(f"{file_state(self.file)}\n".encode() + header_bytes(self.file))
        except OSError as error:
            raise unreadable(self.source, error) from None
        own = f"{self.source}@{self.revision or 'local'}:{digest.hexdigest()[:32]}"
        return " ".join([own, *(f"{name}={part.identity}" for name, part in sorted(self.parts.items()))])

    def digest(self, components: Iterable[str] | None = None) -> str:
        """Returns the SHA-256 of the file. Every byte is read, once in a process for a file that does not change."""
        try:
            return file_digest(self.file)
        except OSError as error:
            raise unreadable(self.source, error) from None

    @cached_property
    def _opened(self) -> SafetensorsFile:
        return SafetensorsFile.open(self.file, self.source)

    @cached_property
    def _description(self) -> Description:
        shapes = {key: entry.shape for key, entry in self._opened.tensors.items()}
        if self.component is None:
            return describe_checkpoint(shapes, self._metadata, self.source)
        if self.component.startswith(("tokenizer", "scheduler")):
            raise CheckpointError(f"{self.setting}.source={self.source}: a file of weights holds no {self.component}")
        config, origins = describe_component(shapes, self.component, self.source)
        return Description({}, {self.component: config}, {self.component: origins})

    @property
    def _metadata(self) -> dict[str, str]:
        values = json.loads(header_bytes(self.file)).get("__metadata__") or {}
        return {str(key): str(value) for key, value in values.items()}

    def _pads_with_a_word(self, tokenizer: str) -> bool:
        """Tells whether a tokenizer is that of an OpenCLIP model, which pads with "!"."""
        encoder = tokenizer.replace("tokenizer", "text_encoder")
        config = self._description.configs.get(encoder) or {}
        return config.get("hidden_act") == "gelu"

    def _no_component(self, component: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: holds no {component}; name one in {self.setting}.{component}.source, such as the "
            "checkpoint that the file was trained from"
        )


def _place(stored: StoredTensor, origin: Origin) -> StoredTensor:
    """Returns where a published tensor lies in the file, before it is transposed."""
    shape = replace(origin, transposed=False).shape(stored.shape)
    if origin.third is None:
        return replace(stored, shape=shape)
    size = stored.nbytes // 3
    return replace(stored, shape=shape, start=stored.start + origin.third * size, nbytes=size)
