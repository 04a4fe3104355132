"""All that is written of a checkpoint: the settings of its components, and their tensors under the published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from diffuse.checkpoints.architecture import read_architecture
from diffuse.checkpoints.checkpoint import Checkpoint, TensorFile
from diffuse.checkpoints.model_sources import locate_models
from diffuse.checkpoints.tensor_reading import DTYPES
from diffuse.checkpoints.weights import check_weights
from diffuse.convert.weights_writer import WrittenTensor
from diffuse.errors import CheckpointError, ConfigError
from diffuse.pipelines.components import Component, Role, choose_components, with_role
from diffuse.pipelines.families import component_names, load_family
from diffuse.schedulers.build import UNKNOWN


@dataclass(frozen=True)
class CheckpointContent:
    """A checkpoint that has been found and checked. No weight has been read."""

    checkpoint: Checkpoint
    index: Mapping[str, Any]
    configs: Mapping[str, dict[str, Any]]  # component -> its published settings; the scheduler's too
    architectures: Mapping[str, Any]  # component -> the same, as its module takes them
    tensors: Mapping[str, list[WrittenTensor]]  # component -> its tensors
    tokenizers: Mapping[str, Path]  # component -> its folder
    is_film: bool  # whether the model makes films

    @property
    def nbytes(self) -> int:
        """Counts the bytes of all tensors."""
        return sum(tensor.nbytes for tensors in self.tensors.values() for tensor in tensors)


def open_content(cfg: DictConfig, precision: str | None) -> CheckpointContent:
    """Finds the checkpoint of a configuration, and checks that each component's weights are those of its settings.

    Args:
        precision: that tensors are to have, as safetensors names it; None for each one's own.

    Raises:
        ConfigError, CheckpointError: they are not there or do not fit, or what no file tells has not been said.
    """
    (checkpoint,) = locate_models(cfg, {"model": component_names(cfg)["model"]})
    components = choose_components(load_family(cfg.model._target_).components, checkpoint)
    is_film = bool(with_role(components, Role.video_codec))
    configs: dict[str, dict[str, Any]] = {}
    architectures: dict[str, Any] = {}
    tensors: dict[str, list[WrittenTensor]] = {}
    tokenizers: dict[str, Path] = {}
    for name, component in components.items():
        part = checkpoint.part(name)
        if component.role is Role.tokenizer:
            tokenizers[name] = part.path(name)
        elif component.config is not None:
            configs[name] = dict(part.config(name))
            file = part.display_name(name, "config.json")
            architectures[name] = read_architecture(component.config, configs[name], file)
            whole = is_film and component.role is Role.text_encoder
            tensors[name] = _tensors(name, component, architectures[name], part, precision, whole=whole)
    configs["scheduler"] = _scheduler(dict(checkpoint.part("scheduler").config("scheduler")), cfg, checkpoint.source)
    return CheckpointContent(checkpoint, checkpoint.index, configs, architectures, tensors, tokenizers, is_film)


def _scheduler(config: dict[str, Any], cfg: DictConfig, source: str) -> dict[str, Any]:
    said = cfg.scheduler.get("prediction_type")
    if said is not None:
        config["prediction_type"] = str(said)
    if config.get("prediction_type") == UNKNOWN:
        raise ConfigError(
            f"{source}: does not say whether its U-Net predicts the noise or the velocity; add "
            "scheduler.prediction_type=v_prediction or scheduler.prediction_type=epsilon"
        )
    return config


def _tensors(
    name: str, component: Component, architecture: Any, part: Checkpoint, precision: str | None, *, whole: bool
) -> list[WrittenTensor]:
    """Returns a component's tensors.

    Args:
        whole: with those that the module has no use for, such as the eyes of a language model, and under their
            published keys.
    """
    module = component.module
    assert module is not None
    check_weights(lambda: module(architecture), part, name, rename=component.rename)
    found = []
    for file in part.tensor_files(name):
        for published, info in file.tensors.items():
            key = published if whole else component.rename(published)
            if key is not None:
                dtype = precision or info.dtype
                if dtype not in DTYPES:
                    raise ConfigError(
                        f"{file.name}: holds weights in fewer bits ({dtype}), which are not written as they are; add "
                        "--precision float32, float16 or bfloat16"
                    )
                found.append(WrittenTensor(key, dtype, tuple(info.shape), _reader(file, published, dtype)))
    return sorted(found, key=lambda tensor: tensor.key)


def _reader(file: TensorFile, published: str, dtype: str) -> Any:
    def read_as(kind: torch.dtype) -> Tensor:
        try:
            (tensor,) = file.read({published: kind}, torch.device("cpu")).values()
        except OSError as error:
            raise CheckpointError(f"{file.name}: cannot be read: {error.strerror or error}") from None
        return tensor

    def read() -> Tensor:
        tensor = read_as(DTYPES[dtype])
        if file.tensors[published].dtype != dtype and not tensor.isfinite().all():
            before = read_as(torch.float64)
            lost = before[before.isfinite() & ~tensor.isfinite()]
            if len(lost):
                raise CheckpointError(_too_large(f"{file.name}: {published}", lost.abs().max().item(), dtype))
        return tensor

    return read


def _too_large(where: str, value: float, dtype: str) -> str:
    name = str(DTYPES[dtype]).removeprefix("torch.")
    wider = "bfloat16 or float32" if dtype == "F16" else "float32"
    most = torch.finfo(DTYPES[dtype]).max
    return f"{where} has the number {value:.6g}, and {name} holds none above {most:.6g}; add --precision {wider}"
