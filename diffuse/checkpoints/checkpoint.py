"""The interface of a checkpoint: the one thing that pipelines and `weights` know about where weights come from.

A folder in the diffusers layout (`folder.CheckpointFolder`) is the first implementation. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TensorInfo(Protocol):
    """The declaration of one stored tensor: `dtype`, named as safetensors names it (`F16`), and `shape`."""

    @property
    def dtype(self) -> str:
        """Is the stored dtype, such as `F32`, `F16` or `BF16`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Is the published shape."""
        ...


class TensorFile(Protocol):
    """A file of a component's weights, or whatever else holds some of its tensors."""

    @property
    def name(self) -> str:
        """Names the file in messages."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Maps each published key to its declaration; no weight is read for it."""
        ...

    def read(self, dtypes: Mapping[str, torch.dtype], device: torch.device) -> Mapping[str, Tensor]:
        """Reads some of the tensors: all of a component's, or those of one block.

        Args:
            dtypes: the published keys to read, each with the dtype that its tensor is to have.
            device: where the tensors are to be.

        Returns:
            Published key -> tensor of the published shape `[...]`.

        Raises:
            OSError: the file cannot be read.
        """
        ...

    def stays_in_file(self, key: str, dtype: torch.dtype) -> bool:
        """Returns whether `read` leaves a tensor that is wanted on the CPU in the file, mapped."""
        ...


class Checkpoint(Protocol):
    """The published configuration, weights and identity of a model, or of one component."""

    @property
    def source(self) -> str:
        """Is what the user asked for, such as a folder or a hub repository `OWNER/NAME`."""
        ...

    @property
    def revision(self) -> str | None:
        """Is the commit on the hub; None for files on this machine."""
        ...

    @property
    def variant(self) -> str | None:
        """Is the published variant of the weights, such as `fp16`; None for the plain one."""
        ...

    @property
    def setting(self) -> str:
        """Is what the source's fields begin with in the configuration, such as `model.vae`; for messages."""
        ...

    @property
    def parts(self) -> Mapping[str, Checkpoint]:
        """Maps the components that have a source of their own to their checkpoints."""
        ...

    @property
    def index(self) -> Mapping[str, Any]:
        """Is the content of `model_index.json`: the family, and what each component is."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Lists what was found out about the checkpoint and could be otherwise, a line each."""
        ...

    @property
    def identity(self) -> str:
        """Tells checkpoints apart within a process, without reading weights."""
        ...

    def part(self, component: str) -> Checkpoint:
        """Returns the checkpoint that `component` is taken from: this one, or one of `parts`."""
        ...

    def config(self, component: str) -> Mapping[str, Any]:
        """Returns the published configuration of a component.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        ...

    def path(self, relative: str) -> Path:
        """Returns the path of a component's small files, such as a tokenizer's folder.

        Raises:
            CheckpointError: it would lie outside the checkpoint.
        """
        ...

    def tensor_files(self, component: str) -> Sequence[TensorFile]:
        """Returns the files of a component's weights, their declarations checked and no weight read.

        Raises:
            CheckpointError: there are none, or one of them is missing, damaged or not safe to read.
        """
        ...

    def display_name(self, component: str, file: str = "") -> str:
        """Returns the name of a component, or of a file of it, for messages."""
        ...

    def digest(self, components: Iterable[str] | None = None) -> str:
        """Returns a SHA-256 of the weights' contents, without those of `parts`."""
        ...


def checkpoint_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns a checkpoint's source, revision, variant and digest, for the record.

    `components` holds the same for each component that has a source of its own. Reads every byte of the weights.
    """
    parts = {name: checkpoint_record(part) for name, part in checkpoint.parts.items()}
    return {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "variant": checkpoint.variant,
        "sha256": checkpoint.digest(),
    } | ({"components": parts} if parts else {})


def weights_tag(weights: Mapping[str, Any]) -> str:
    """Returns the recorded weights in one line: the model's `source@sha256`, then those of parts and other files."""
    parts = [f"{name}={weights_tag(part)}" for name, part in weights.get("components", {}).items()]
    refiner = [f"refiner={weights_tag(weights['refiner'])}"] if "refiner" in weights else []
    files = [
        f"{name}={each['source']}@{each['sha256']}"
        for name in ("lora", "embedding")
        for each in weights.get(name, {}).values()
    ]
    return "; ".join([f"{weights['source']}@{weights['sha256']}", *parts, *refiner, *files])
