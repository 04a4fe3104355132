"""A checkpoint in one file in the layout of the first implementations, or one component of it, also as exported.

It is read where it lies, as safetensors or as PyTorch wrote it: tensors keep their places in the file, and only their
names are others.
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
from diffuse.checkpoints.checkpoint import Checkpoint, TensorFile, TensorInfo
from diffuse.checkpoints.folder import file_digest, file_state
from diffuse.checkpoints.safetensors_file import SafetensorsFile, StoredFile, StoredTensor, header_bytes, unreadable
from diffuse.checkpoints.torch_files.torch_file import open_weights_file
from diffuse.errors import CheckpointError
from diffuse.models.single_file.describe import SAID_PREDICTION, describe_checkpoint, describe_component, vae_settings
from diffuse.models.single_file.origin import Description, Origin

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VOCABULARY = Path(diffuse.__file__).parent / "models" / "single_file" / "vocabulary"
"""The words of CLIP, as two tokenizers: `clip` and `open_clip`. No single file holds its own."""
# What no tensor tells is the model's whose component a file replaces; of the latter, where both are of one size.
_OF_THE_MODEL = ("scaling_factor", "shift_factor", "force_upcast", "sample_size", "upcast_attention")
_OF_A_SIZE = ("attention_head_dim", "num_attention_heads", "hidden_act", "eos_token_id")
_SIZES = ("block_out_channels", "cross_attention_dim", "hidden_size", "num_hidden_layers", "projection_dim")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_FILE_NAMES = ("model_index.json", "config.json", "scheduler_config.json")


@dataclass(frozen=True)
class RenamedFile:
    """The tensors of one component in a single file, under their published keys; see `checkpoint.TensorFile`."""

    file: StoredFile
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
class PartOfFile:
    """Some of the tensors of a file; see `checkpoint.TensorFile`."""

    file: TensorFile
    keys: frozenset[str]

    @property
    def name(self) -> str:
        """Names the file in messages."""
        return self.file.name

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Maps each published key to its declaration."""
        return {key: info for key, info in self.file.tensors.items() if key in self.keys}

    def read(self, dtypes: Mapping[str, torch.dtype], device: torch.device) -> Mapping[str, Tensor]:
        """See `checkpoint.TensorFile`."""
        return self.file.read(dtypes, device)

    def stays_in_file(self, key: str, dtype: torch.dtype) -> bool:
        """See `checkpoint.TensorFile`."""
        return self.file.stays_in_file(key, dtype)


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
        prediction_type: of the U-Net, where the user says it: the size and the attention of a file of SD 2.x go by it.
    """

    file: Path
    source: str
    revision: str | None = None
    setting: str = "model"
    component: str | None = None
    parts: Mapping[str, Checkpoint] = field(default_factory=dict)
    model: Checkpoint | None = None
    prediction_type: str | None = None

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
        own = [f"{self.source}: {note}" for note in self._description.notes]
        if self._is_decoder and self.model is not None:
            own.append(f"{self.source}: is a decoder alone; the rest of the autoencoder is that of {self.model.source}")
        return own + [note for part in self.parts.values() for note in part.notes]

    def config(self, component: str) -> dict[str, Any]:
        """Returns what the published configuration of a component would say.

        Raises:
            CheckpointError: the file holds no such component.
        """
        config = self._description.configs.get(component)
        if config is None:
            raise self._no_component(component)
        if self.component is None or self.model is None or "LTX2" in str(config.get("_class_name")):
            return config
        if not config:  # no tensor tells its settings
            return dict(self.model.config(component))
        try:
            theirs = self.model.config(component)
        except CheckpointError:  # it is a file that has none
            is_xl = "addition_embed_type" in self.model.config("unet")
            theirs = vae_settings(is_xl) if component == "vae" else {}
        names: tuple[str, ...] = _OF_THE_MODEL
        if all(config.get(key) == theirs.get(key) for key in _SIZES):
            names += _OF_A_SIZE
        return config | {key: theirs[key] for key in names if key in theirs}

    def path(self, relative: str) -> Path:
        """Returns the folder of a tokenizer, whose words are those of CLIP; other small files a single file has not.

        That of a model of films is beside its text encoder, which no file holds.

        Raises:
            CheckpointError: it is not.
        """
        name = relative.partition("/")[0]
        if name == "tokenizer" and self.component is None and "transformer" in self._description.configs:
            return self._tokenizer_of_text_encoder()
        if name in ("tokenizer", "tokenizer_2"):
            return VOCABULARY / ("open_clip" if self._pads_with_a_word(name) else "clip")
        return self.file.parent / relative if relative in _FILE_NAMES else self.file

    def tensor_files(self, component: str) -> list[TensorFile]:
        """Returns the component's tensors under their published keys; no weight is read.

        Raises:
            CheckpointError: the file holds no such component, or is damaged.
        """
        origins = self._description.origins.get(component)
        if origins is None:
            raise self._no_component(component)
        stored = self._opened.tensors
        renamed = {key: _place(stored[origin.key], origin, self.source) for key, origin in origins.items()}
        transposed = frozenset(key for key, origin in origins.items() if origin.transposed)
        own = RenamedFile(StoredFile(self.file, self.source, renamed), transposed)
        return [own, *self._encoder_files(renamed)] if self._is_decoder else [own]

    def display_name(self, component: str, file: str = "") -> str:
        """Returns the name of a component, or of a file of it, for messages."""
        return f"{self.source}: {component}"

    @property
    def identity(self) -> str:
        """Tells checkpoints apart within a process: a file that was replaced has another identity."""
        digest = hashlib.sha256()
        try:
            digest.update(f"{file_state(self.file)}\n".encode() + self._header)
        except OSError as error:
            raise unreadable(self.source, error) from None
        if self._is_decoder and self.model is not None:
            digest.update(self.model.identity.encode())
        own = f"{self.source}@{self.revision or 'local'}:{digest.hexdigest()[:32]}{self.prediction_type or ''}"
        return " ".join([own, *(f"{name}={part.identity}" for name, part in sorted(self.parts.items()))])

    def digest(self, components: Iterable[str] | None = None) -> str:
        """Returns the SHA-256 of the file. Every byte is read, once in a process for a file that does not change.

        For a decoder alone it is one over that, and over the digest of the autoencoder whose encoder it is used with.

        Args:
            components: those that count; where the file holds none of them, it is the SHA-256 of nothing.
        """
        if components is not None and not self._description.origins.keys() & set(components):
            return hashlib.sha256().hexdigest()
        try:
            own = file_digest(self.file)
        except OSError as error:
            raise unreadable(self.source, error) from None
        if self._is_decoder and self.model is not None:
            return hashlib.sha256(f"{own}  decoder\n{self.model.digest(['vae'])}  vae\n".encode()).hexdigest()
        return own

    @cached_property
    def _is_decoder(self) -> bool:
        """Tells whether the file is the decoder of an autoencoder alone, as decoders were exported."""
        return self.component == "vae" and not self._description.configs["vae"]

    def _encoder_files(self, own: Mapping[str, object]) -> list[TensorFile]:
        """Returns the tensors that a decoder lacks to be an autoencoder: those of the model's."""
        if self.model is None:
            raise CheckpointError(f"{self.source}: is a decoder alone; give it as model.vae.source")
        files = self.model.tensor_files("vae")
        return [PartOfFile(file, frozenset(file.tensors.keys() - own.keys())) for file in files]

    @cached_property
    def _opened(self) -> StoredFile:
        return open_weights_file(self.file, self.source)

    @cached_property
    def _description(self) -> Description:
        shapes = {key: entry.shape for key, entry in self._opened.tensors.items()}
        if self.component is None:
            return describe_checkpoint(shapes, self._metadata, self.source)
        if self.component.startswith(("tokenizer", "scheduler")):
            raise CheckpointError(f"{self.setting}.source={self.source}: a file of weights holds no {self.component}")
        config, origins = describe_component(shapes, self.component, self.source, self._metadata)
        if config is None:  # no tensor tells it
            if self.model is None:
                raise CheckpointError(
                    f"{self.source}: does not say what {self.component} it holds; give it beside a checkpoint, as "
                    f"model.{self.component}.source"
                )
            config = dict(self.model.config(self.component))
        return Description({}, {self.component: config}, {self.component: origins})

    @property
    def _header(self) -> bytes:
        return header_bytes(self.file) if isinstance(self._opened, SafetensorsFile) else b""

    @property
    def _metadata(self) -> dict[str, str]:
        values = json.loads(self._header or b"{}").get("__metadata__") or {}
        said = {} if self.prediction_type is None else {SAID_PREDICTION: self.prediction_type}
        return {str(key): str(value) for key, value in values.items()} | said

    def _pads_with_a_word(self, tokenizer: str) -> bool:
        """Tells whether a tokenizer is that of an OpenCLIP model, which pads with "!"."""
        encoder = tokenizer.replace("tokenizer", "text_encoder")
        config = self._description.configs.get(encoder) or {}
        return config.get("hidden_act") == "gelu"

    def _tokenizer_of_text_encoder(self) -> Path:
        encoder = self.parts.get("text_encoder")
        if encoder is None:
            raise self._no_component("text_encoder")
        own = encoder.path("text_encoder")
        for folder in (own, own.parent / "tokenizer"):
            if any((folder / name).is_file() for name in _TOKENIZER_FILES):
                return folder
        raise CheckpointError(
            f"{encoder.source}: has no tokenizer beside the text encoder; name one in {self.setting}.tokenizer.source"
        )

    def _no_component(self, component: str) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: holds no {component}; name one in {self.setting}.{component}.source, such as the "
            "checkpoint that the file was trained from"
        )


def _place(stored: StoredTensor, origin: Origin, name: str) -> StoredTensor:
    """Returns where a published tensor lies in the file, before it is transposed.

    Raises:
        CheckpointError: it is a part of one whose rows do not lie one after the other, or no whole part.
    """
    if origin.third is None and not origin.drop_axes:  # as nearly all are
        return stored
    is_whole = not stored.shape[0] % 3 if origin.third is not None else all(side == 1 for side in stored.shape[2:])
    if not is_whole:
        needed = "three times as many rows as it has columns" if origin.third is not None else "a 1 x 1 convolution"
        raise CheckpointError(f"{name}: {origin.key} is {tuple(stored.shape)} and should be {needed}; it is damaged")
    shape = replace(origin, transposed=False).shape(stored.shape)
    if stored.axes is not None:
        if origin.third is not None:
            raise CheckpointError(f"{name}: {origin.key} is stored in columns; save the file anew as safetensors")
        stored = replace(stored, axes=tuple(axis for axis in stored.axes if axis < len(shape)))
    if origin.third is None:
        return replace(stored, shape=shape)
    size = stored.nbytes // 3
    scale = stored.scale
    if scale is not None and scale.shape != (1,):  # one for each row
        rows = scale.nbytes // 3
        scale = replace(scale, shape=shape[:1], start=scale.start + origin.third * rows, nbytes=rows)
    return replace(stored, shape=shape, start=stored.start + origin.third * size, nbytes=size, scale=scale)
