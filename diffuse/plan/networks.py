"""The networks of a plan: a component's module without storage, its bytes, and the calls of it that were followed."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffuse.layers.quantized import Quantization, quantize_layers, quantized_layers
from diffuse.plan.live_bytes import Call

MAX_NETWORKS = 16  # whose shapes and calls a process keeps; they have no storage


class Network:
    """A module without storage in one dtype, and the calls of it that were followed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls: dict[Any, Call] = {}

    @property
    def tensors(self) -> list[Tensor]:
        """All parameters and buffers."""
        return [*self.module.parameters(), *self.module.buffers()]

    @property
    def parameters(self) -> int:
        """Is the number of parameters, with those that are quantized."""
        return sum(each.numel() for each in self.module.parameters()) + self._quantized

    def full_bytes(self, dtype: torch.dtype) -> int:
        """Returns the bytes of all weights if none of them were quantized."""
        stored = sum(own_bytes(each) - tensor_bytes(list(each.parameters())) for each in quantized_layers(self.module))
        return tensor_bytes(self.tensors) - stored + self._quantized * dtype.itemsize

    @property
    def _quantized(self) -> int:
        return sum(math.prod(each.shape) for each in quantized_layers(self.module))


_networks: OrderedDict[Any, Network] = OrderedDict()


class Plain(NamedTuple):
    """The way to make a component's module without storage.

    `key` tells modules apart, and `quantization` says how its weights are to be stored.
    """

    build: Callable[[], nn.Module]
    key: Any
    quantization: Quantization | None = None


def network(plain: Plain, dtype: torch.dtype) -> Network:
    """Returns the network of a module in `dtype`; kept for the next prediction of the process."""
    key = plain.key, plain.quantization, dtype
    if key not in _networks:
        while len(_networks) >= MAX_NETWORKS:
            _networks.popitem(last=False)
        # Kernels lie channels last from the first use on; that they are brought to lie so is no activation.
        module = plain.build().to(dtype).eval().requires_grad_(False)
        if plain.quantization is not None:
            quantize_layers(module, plain.quantization)
        for parameter in module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        _networks[key] = Network(module)
    _networks.move_to_end(key)
    return _networks[key]


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    """Returns the bytes of tensors, each once."""
    return sum({id(each): each.numel() * each.element_size() for each in tensors}.values())


def own_bytes(module: nn.Module) -> int:
    """Returns the bytes of a module's own tensors, without those of its parts."""
    return tensor_bytes([*module.parameters(recurse=False), *module.buffers(recurse=False)])
