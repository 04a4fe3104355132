"""A file that PyTorch wrote (`.ckpt`, `.bin`, `.pt`, `.pth`): the weights of a `torch.save`, or a TorchScript archive.

Its pickle is read as data and its tensors stay where they are: a reader gets their places in the file, as of a
safetensors file. Whatever else is in it, such as code, is never looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffuse.checkpoints.gguf.gguf_file import GGUF_MAGIC, open_gguf
from diffuse.checkpoints.safetensors_file import SafetensorsFile, StoredFile, unreadable
from diffuse.checkpoints.torch_files.archive import DATA, MAGIC, Record, read_archive
from diffuse.checkpoints.torch_files.declarations import (
    TENSOR_GLOBALS,
    declare_tensors,
    first_tensor_below,
    is_tensor,
    storage_type,
)
from diffuse.checkpoints.torch_files.unpickle import Product, Reference, read_pickle
from diffuse.errors import CheckpointError

_LEGACY = 0x1950A86A20F9469CFC6C  # with which `torch.save` began until version 1.6
# What training programs wrote beside the weights: noted as data, and of no use here.
_HARMLESS = frozenset(
    """
    __builtin__.set __builtin__.dict __builtin__.list __builtin__.complex __builtin__.bytearray __builtin__.int
    __builtin__.long __builtin__.float __builtin__.bool __builtin__.str __builtin__.unicode
    builtins.set builtins.dict builtins.list builtins.int builtins.float builtins.complex builtins.bytearray
    builtins.bool builtins.str
    _codecs.encode argparse.Namespace collections.Counter collections.defaultdict typing.Any
    torch.Size torch.device torch.float16 torch.bfloat16 torch.float32 torch.float64 torch.int64
    torch.nn.modules.container.ParameterDict torch.nn.parameter.Parameter
    numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy._core.multiarray.scalar
    numpy._core.multiarray._reconstruct numpy.dtype numpy.ndarray
    pytorch_lightning.callbacks.ModelCheckpoint pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.callbacks.early_stopping.EarlyStopping pytorch_lightning.utilities.parsing.AttributeDict
    lightning_fabric.utilities.data.AttributeDict
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata omegaconf.nodes.AnyNode
    """.split()  # noqa: SIM905
)
_WEIGHTS = ("state_dict", "model_state_dict")
_OF_TRAINING = frozenset(
    """
    optimizer_states optimizer optimizer_state_dict lr_schedulers lr_scheduler scheduler callbacks loops
    hyper_parameters
    """.split()  # noqa: SIM905
)
_MOST_MODULES = 200_000
_LONGEST_NAME = 1000  # of a tensor of a TorchScript archive, with the names of its modules
_MOST_NAMED = 16 << 20  # characters of all of them
_LFS = b"version https://git-lfs"


def weights_by_name(root: Any, name: str) -> Mapping[str, Any]:
    """Returns the tensors of what `torch.save` saved, which may have been saved with what training needs.

    Args:
        root: the pickle's value.
        name: of the file, for messages.

    Raises:
        CheckpointError: there are none, or others beside them or among them, such as those of several models.
    """
    if not isinstance(root, dict):
        raise CheckpointError(f"{name}: holds no weights by name; save the state_dict of the model as safetensors")
    chosen = next((key for key in _WEIGHTS if isinstance(root.get(key), dict)), None)
    weights = root if chosen is None else root[chosen]
    found = {key: value for key, value in weights.items() if isinstance(key, str) and is_tensor(value)}
    rest = {key: value for key, value in weights.items() if key not in found}
    others = rest if chosen is None else {**root, chosen: rest}
    other = first_tensor_below({key: value for key, value in others.items() if key not in _OF_TRAINING}, name)
    if other is not None:
        raise CheckpointError(
            f"{name}: has the tensor {other:.100} beside the weights of one model; save each model as a file of its own"
        )
    if not found:
        raise CheckpointError(f"{name}: holds no weights; give a checkpoint")
    return found


Select = Callable[[Any, str], Mapping[str, Any]]
"""Selects the tensors of a pickle's value by their names, given the file's name for messages."""


def open_weights_file(path: Path, name: str, select: Select = weights_by_name) -> StoredFile:
    """Opens a file of weights, whatever its format, and checks where its tensors lie. No weight is read.

    Args:
        path: of the file.
        name: of it, for messages.
        select: for a file of `torch.save`.

    Raises:
        CheckpointError: it cannot be read, is damaged, or has more in it than weights.
    """
    if path.suffix.lower() == ".safetensors":
        return SafetensorsFile.open(path, name)
    try:
        with path.open("rb") as file:
            start = file.read(32)
        if not start:
            raise CheckpointError(f"{name}: the file is empty; copy or download it again")
        if start.startswith(GGUF_MAGIC):
            return open_gguf(path, name)
        if start.startswith(MAGIC):
            return _open_archive(path, name, select)
        if start[:1] == b"\x80":
            return _open_legacy(path, name, select)
    except OSError as error:
        raise unreadable(name, error) from None
    if start[8:9] == b"{":
        return SafetensorsFile.open(path, name)
    if start.startswith(_LFS):
        raise CheckpointError(f"{name}: is a Git LFS pointer and not the weights; run 'git lfs pull' in its folder")
    raise CheckpointError(f"{name}: holds no weights, neither of PyTorch nor as safetensors; it may be a text")


def _open_archive(path: Path, name: str, select: Select) -> StoredFile:
    archive = read_archive(path, name)
    if "byteorder" in archive.records and archive.bytes_of("byteorder") != b"little":
        raise CheckpointError(f"{name}: was written by a computer with the other order of bytes; save it anew there")
    is_script = "constants.pkl" in archive.records
    root = read_pickle(archive.bytes_of("data.pkl"), _is_script_global if is_script else _is_allowed, name)
    values = _module_tensors(root, name) if is_script else select(root, name)
    storages = {key[len(DATA) :]: record for key, record in archive.records.items() if key.startswith(DATA)}
    return StoredFile(path, name, declare_tensors(values, storages, path.stat().st_size, name))


def _open_legacy(path: Path, name: str, select: Select) -> StoredFile:
    """Opens a file as PyTorch wrote it until version 1.6: pickles one after the other, and then the storages."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if read_pickle(file, _is_allowed, name) != _LEGACY:
            raise CheckpointError(f"{name}: is a pickle that PyTorch did not write; save it anew as safetensors")
        read_pickle(file, _is_allowed, name)
        system = read_pickle(file, _is_allowed, name)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError(f"{name}: was written by a computer with the other order of bytes; save it anew")
        used: dict[str, int] = {}
        root = read_pickle(file, _is_allowed, name, lambda reference: _note_storage(reference, used))
        keys = read_pickle(file, _is_allowed, name)
        storages: dict[str, Record] = {}
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in used for key in keys):
            raise CheckpointError(f"{name}: its pickle is damaged; copy or download it again")
        for key in keys:
            header = file.read(8)
            nbytes = struct.unpack("<q", header)[0] * used[key] if len(header) == 8 else -1
            if nbytes < 0 or file.tell() + nbytes > size:
                raise CheckpointError(f"{name}: is cut short; copy or download it again")
            storages[key] = Record(file.tell(), nbytes)
            file.seek(nbytes, 1)
    return StoredFile(path, name, declare_tensors(select(root, name), storages, size, name))


def _note_storage(reference: Reference, used: dict[str, int]) -> None:
    """Notes the bytes of a number of a storage, which only the tensors on it tell."""
    used[reference.value[2]] = storage_type(reference.value[1])[1]


def _is_allowed(what: str) -> bool:
    return what in TENSOR_GLOBALS or what in _HARMLESS


def _is_script_global(what: str) -> bool:
    """Tells whether a TorchScript archive may name a global: a class of a module, a typed list, a tensor's maker."""
    return what.startswith(("__torch__.", "torch.jit._pickle.")) or what in TENSOR_GLOBALS


def _module_tensors(root: Any, name: str) -> dict[str, Any]:
    """Returns the tensors of a TorchScript archive by the names of its modules."""
    found: dict[str, Any] = {}
    left: list[tuple[str, Any]] = [("", root)]
    count = named = 0
    while left:
        prefix, module = left.pop()
        state: Any = module.state if isinstance(module, Product) else None
        for key, value in state.items() if isinstance(state, dict) else ():
            if not isinstance(key, str):  # which no attribute is named
                continue
            count, length = count + 1, len(prefix) + len(key)
            named += length
            if length > _LONGEST_NAME or named > _MOST_NAMED:
                raise CheckpointError(f"{name}: has longer names of weights than any model; it is refused")
            if count > _MOST_MODULES or prefix.count(".") > 100:
                raise CheckpointError(f"{name}: has more modules than any model; it is refused")
            if is_tensor(value):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, Product) and value.what.startswith("__torch__."):
                left.append((f"{prefix}{key}.", value))
    if not found:
        raise CheckpointError(
            f"{name}: is a TorchScript archive without names of weights, as torch.jit.freeze makes them, or a traced "
            "function; export the module itself, or save its state_dict"
        )
    return found
