"""Fills a module with a component's published weights: strictly, in the requested dtype and on the requested device.

A module is built on the meta device, so that nothing is allocated or initialised before the weights are there. Every
tensor arrives through `TensorFile.read`, which is given the keys to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffuse.checkpoints.checkpoint import Checkpoint, TensorFile
from diffuse.checkpoints.tensor_reading import DTYPES, READABLE, is_large
from diffuse.errors import CheckpointError, first_line
from diffuse.layers.quantized import Quantization, QuantizedLayer, quantize_layers

_GROUP_BYTES = 128 << 20  # of weights that are read at a time, where not all are needed at once
_Match = list[tuple[TensorFile, dict[str, str]]]  # each file with {published key: the module's key}


def check_weights(
    build: Callable[[], nn.Module],
    checkpoint: Checkpoint,
    component: str,
    *,
    rename: Callable[[str], str | None] = lambda key: key,
) -> None:
    """Checks from the files' headers alone that `load_weights` can fill the module that `build` makes.

    Raises:
        CheckpointError: as `load_weights` does; or there is no such module, because the numbers of its configuration
            do not go together.
    """
    try:
        expected = skeleton(build).state_dict()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        where = checkpoint.display_name(component, "config.json")
        reason = first_line(error)
        raise CheckpointError(
            f"{where}: its numbers make no model ({reason}); copy or download it again, or use another checkpoint"
        ) from error
    _match(checkpoint.tensor_files(component), expected, rename, checkpoint, component)


def load_weights(
    build: Callable[[], nn.Module],
    checkpoint: Checkpoint,
    component: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    rename: Callable[[str], str | None] = lambda key: key,
    keep_float32: Callable[[str], bool] = lambda key: False,
    quantization: Quantization | None = None,
) -> nn.Module:
    """Returns the module that `build` makes, filled, on `device`, in evaluation mode and without gradients.

    Buffers outside the state dict are not in the files: avoid them, or give the module that owns them a method
    `materialize()` that makes them anew, on the CPU; it is called once, and its buffers are moved and not cast.

    Args:
        build: makes the module; it is called on the meta device.
        checkpoint: the checkpoint that `component` is taken from.
        component: such as `unet`.
        device: where all tensors are to be.
        dtype: of all parameters and buffers in the state dict.
        rename: maps a published key to the module's own, or to None for a tensor the module has no use for, which is
            then not read.
        keep_float32: tells of the module's keys which ones are float32 whatever `dtype` is.
        quantization: how the weights of linear layers and convolutions are stored, in place of `dtype`. They are read
            some at a time, so that memory never holds all of them in full.

    Raises:
        CheckpointError: a file is damaged, or a key is missing, unexpected, there twice, of the wrong shape or of a
            dtype that is not floating point. The message names the file and the key. Nothing is read before all fit.
    """
    device = torch.device(device)
    module = skeleton(build)
    expected = module.state_dict(keep_vars=True)
    match = _match(checkpoint.tensor_files(component), expected, rename, checkpoint, component)
    stored = {} if quantization is None else quantize_layers(module, quantization)
    owners = dict(module.named_modules())
    for file, keys in match:
        _fill_quantized(file, {published: stored[key] for published, key in keys.items() if key in stored}, device)
        dtypes = {
            published: torch.float32 if keep_float32(key) else dtype
            for published, key in keys.items()
            if key not in stored
        }
        try:
            tensors = file.read(dtypes, device)
        except OSError as error:
            raise CheckpointError(f"{file.name}: cannot be read: {error.strerror or error}") from None
        for published, tensor in tensors.items():
            key = keys[published]
            owner, _, name = key.rpartition(".")
            is_parameter = isinstance(expected[key], nn.Parameter)
            setattr(owners[owner], name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
    _materialize(module, owners, device)
    return module.eval()


def _fill_quantized(file: TensorFile, layers: Mapping[str, QuantizedLayer], device: torch.device) -> None:
    """Reads the weights of quantized layers, by their published keys, and drops each once it is stored."""
    for published, layer in layers.items():
        try:
            weight = file.read({published: torch.float32}, device)[published]
            layer.fill(weight)
        except OSError as error:
            raise CheckpointError(f"{file.name}: cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise CheckpointError(
                f"{file.name}: {published} cannot be stored as {layer.storage.value}: {error}; use "
                "memory_profile.storage=full"
            ) from None


def read_weights(
    checkpoint: Checkpoint,
    component: str,
    keys: Collection[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    rename: Callable[[str], str | None] = lambda key: key,
) -> Iterator[dict[str, Tensor]]:
    """Yields some of a component's weights, `[...]` by the module's keys, some at a time.

    Those that stay in the mapped file come together: they take no memory.

    Raises:
        CheckpointError: a file cannot be read any more.
    """
    wished = set(keys)
    for file in checkpoint.tensor_files(component):
        published = {name: key for name in file.tensors if (key := rename(name)) in wished}
        groups: list[list[str]] = [[]]
        nbytes = 0
        for name in published:
            info = file.tensors[name]
            if device.type == "cpu" and DTYPES.get(info.dtype) == dtype:
                groups[0].append(name)
                continue
            size = math.prod(info.shape) * dtype.itemsize
            if len(groups) == 1 or nbytes + size > _GROUP_BYTES:
                groups.append([])
                nbytes = 0
            groups[-1].append(name)
            nbytes += size
        for group in filter(None, groups):
            try:
                tensors = file.read(dict.fromkeys(group, dtype), device)
            except OSError as error:
                raise CheckpointError(f"{file.name}: cannot be read: {error.strerror or error}") from None
            yield {str(published[name]): tensors[name] for name in group}


def copied_bytes(
    checkpoint: Checkpoint, component: str, module: nn.Module, rename: Callable[[str], str | None] = lambda key: key
) -> int:
    """Returns the bytes of main memory that `load_weights` takes on the CPU, without what stays in the file, mapped.

    Args:
        module: of the component, in the dtype that is wanted. Where the weights are not here they are taken for such.
        rename: as for `load_weights`.
    """
    dtype = max((each.dtype for each in module.parameters()), key=lambda each: each.itemsize)
    layers = {f"{path}.weight": each for path, each in module.named_modules() if isinstance(each, QuantizedLayer)}
    stored = sum(buffer.numel() * buffer.element_size() for each in layers.values() for buffer in each.buffers())
    try:
        files = checkpoint.tensor_files(component)
    except CheckpointError:
        sizes = (each.numel() * dtype.itemsize for each in module.parameters())
        return stored + sum(size for size in sizes if not is_large(size))
    return stored + sum(
        math.prod(info.shape) * dtype.itemsize
        for file in files
        for key, info in file.tensors.items()
        if not (file.stays_in_file(key, dtype) or (layers and rename(key) in layers))
    )


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Returns the module that `build` makes, without storage: its keys and shapes."""
    with torch.device("meta"), _WithoutInitialisation():
        return build()


class _WithoutInitialisation(TorchFunctionMode):
    """Skips `torch.nn.init`: it would fill tensors that have no storage yet and will be replaced."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _match(
    files: Sequence[TensorFile],
    expected: Mapping[str, Tensor],
    rename: Callable[[str], str | None],
    checkpoint: Checkpoint,
    component: str,
) -> _Match:
    """Finds one published tensor for each of the `expected` keys."""
    result: _Match = []
    origin: dict[str, str] = {}
    unexpected: list[str] = []
    for file in files:
        keys: dict[str, str] = {}
        for published, info in file.tensors.items():
            key = rename(published)
            if key is None:
                continue
            if key not in expected:
                unexpected.append(published)
                continue
            if key in origin:
                raise CheckpointError(
                    f"{file.name}: {published} is there twice, also as {origin[key]}; the file is damaged"
                )
            shape = tuple(expected[key].shape)
            if info.shape != shape:
                raise CheckpointError(
                    f"{file.name}: {published} has the shape {list(info.shape)} where {component}/config.json asks for "
                    f"{list(shape)}; the two files are of different models"
                )
            if info.dtype not in READABLE:
                raise CheckpointError(
                    f"{file.name}: {published} is stored as {info.dtype}; implemented: {', '.join(READABLE)}; use a "
                    "checkpoint that is not quantized"
                )
            origin[key] = published
            keys[published] = key
        if keys:
            result.append((file, keys))
        if unexpected:
            raise CheckpointError(
                f"{file.name}: has {_enumerate(unexpected)}, which the model of {component}/config.json has no place "
                "for; the two files are of different models"
            )
    missing = [key for key in expected if key not in origin]
    if missing:
        where = files[0].name if len(files) == 1 else checkpoint.display_name(component)
        raise CheckpointError(
            f"{where}: lacks {_enumerate(missing)}, which {component}/config.json asks for; the files are incomplete "
            "or of different models"
        )
    return result


def _enumerate(keys: list[str]) -> str:
    """Returns the first few keys, and how many more there are."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(sorted(keys)[:3]) + more


def _materialize(module: nn.Module, owners: Mapping[str, Any], device: torch.device) -> None:
    """Gives storage to the buffers that no file holds. `owners` are the parts of the module by their names.

    Raises:
        RuntimeError: a module leaves a tensor without storage; a mistake in the module, not in the checkpoint.
    """
    unfilled = [name for name, buffer in module.named_buffers() if buffer.is_meta]  # parameters are in the state dict
    for owner_name in {name.rpartition(".")[0] for name in unfilled}:
        owner = owners[owner_name]
        if not hasattr(owner, "materialize"):
            raise RuntimeError(
                f"{type(owner).__name__} {owner_name}: has a buffer outside its state dict and no materialize()"
            )
        owner.materialize()
        for buffer, value in [*owner.named_buffers(recurse=False)]:
            setattr(owner, buffer, value.to(device))
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta] if unfilled else []
    for owner_name, owner in owners.items():
        left += [f"{owner_name}.{k}" for k, value in vars(owner).items() if isinstance(value, Tensor) and value.is_meta]
    if left:
        raise RuntimeError(f"{type(module).__name__}: {', '.join(left)} was left without storage")
