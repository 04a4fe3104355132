"""A GGUF file: which tensors it declares, checked without reading them.

The format is described in `docs/gguf.md` of ggml. Of its settings only those are kept that are needed here; whatever
else is there is passed over, so that a header takes no more memory than its tensors' names.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from diffuse.checkpoints.safetensors_file import StoredFile, StoredTensor, unreadable
from diffuse.errors import CheckpointError

GGUF_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Of a setting's value, by its type: the format that `struct` has for it.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ARCHITECTURE, _ALIGNMENT = "general.architecture", "general.alignment"
_SHAPE = "comfy.gguf.orig_shape."  # before the name of a tensor that is stored in another one
# What tools for pictures and films write as the architecture of models that are implemented here.
_FAMILIES = ("sd1", "sd2", "sdxl", "ltxv")
# The types of tensors by their numbers: (name, weights in a block, bytes of a block).
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    28: ("F64", 1, 8),
    30: ("BF16", 1, 2),
}
_OTHER_TYPES = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"},
    **{22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0"},
    **{39: "MXFP4", 40: "NVFP4"},
}
_MOST_TENSORS = 100_000
_MOST_SETTINGS = 100_000
_MOST_TEXTS = 5_000_000  # in lists: a language model lists its words
_LONGEST_NAME = 1024
_MOST_AXES = 8


def open_gguf(path: Path, name: str) -> StoredFile:
    """Opens a file and checks that its header and its length fit together.

    Raises:
        CheckpointError: it cannot be read, is damaged or cut short, has tensors of a type that is not implemented, or
            is of a family of models that is not.
    """
    try:
        with path.open("rb") as file:
            return _Header(file, path, name, path.stat().st_size).read()
    except OSError as error:
        raise unreadable(name, error) from None


class _Header:
    """The header of a file, read from its beginning."""

    def __init__(self, file: BinaryIO, path: Path, name: str, size: int) -> None:
        self.file, self.path, self.name, self.size = file, path, name, size
        self.texts = 0  # passed over in lists

    def read(self) -> StoredFile:
        """Reads all of it."""
        magic, version = self._bytes(4), self._number("I")
        if magic != GGUF_MAGIC:
            raise CheckpointError(f"{self.name}: is no GGUF file; copy or download it again")
        if version & 0xFFFF == 0:
            raise CheckpointError(f"{self.name}: is for computers with the other order of bytes; convert it anew")
        if version not in _VERSIONS:
            raise CheckpointError(f"{self.name}: is of GGUF version {version}, only 2 and 3 are read; convert it anew")
        count, number = self._number("Q"), self._number("Q")
        if count > _MOST_TENSORS or number > _MOST_SETTINGS:
            raise self._damaged(f"{count} tensors and {number} settings are more than any model has")
        settings: dict[str, Any] = {}
        for _ in range(number):
            key = self._text(0xFFFF)
            needed = key in (_ARCHITECTURE, _ALIGNMENT) or key.startswith(_SHAPE)
            value = self._value(self._number("I"), needed=needed)
            if needed:
                settings[key] = value
        architecture = str(settings.get(_ARCHITECTURE, ""))
        if architecture and architecture not in _FAMILIES:
            raise CheckpointError(
                f"{self.name}: is a GGUF file of {architecture:.60}, which is not implemented; implemented: "
                f"{', '.join(_FAMILIES)}"
            )
        entries = [self._entry() for _ in range(count)]
        alignment = settings.get(_ALIGNMENT, 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"tensors cannot be aligned to {alignment!r:.60}")
        start = -(-self.file.tell() // alignment) * alignment
        return StoredFile(self.path, self.name, self._place(entries, start, settings))

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Reads the name, the shape, the type and the place of a tensor."""
        key = self._text(_LONGEST_NAME)
        axes = self._number("I")
        if axes > _MOST_AXES:
            raise self._damaged(f"{key:.60} has {axes} axes")
        shape = tuple(self._number("Q") for _ in range(axes))[::-1]  # the file has the fastest axis first
        return key, shape, self._number("I"), self._number("Q")

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], start: int, settings: Mapping[str, Any]
    ) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for key, shape, kind, offset in entries:
            if kind not in _TYPES:
                what = _OTHER_TYPES.get(kind, f"type {kind}")
                names = ", ".join(name for name, _, _ in _TYPES.values())
                raise CheckpointError(
                    f"{self.name}: {key:.100} is stored as {what}, which is not implemented; implemented: {names}"
                )
            name, weights, nbytes = _TYPES[kind]
            size, columns = math.prod(shape), shape[-1] if shape else 1
            if columns % weights or key in tensors:
                raise self._damaged(f"{key:.100} is there twice, or its rows are no whole blocks")
            size = size // weights * nbytes
            if start + offset + size > self.size:
                raise CheckpointError(f"{self.name}: is cut short at {key:.100}; copy or download it again")
            tensors[key] = StoredTensor(name, self._shape(key, shape, settings), start + offset, size)
        if start + sum(tensor.nbytes for tensor in tensors.values()) > self.size:
            raise self._damaged("its tensors lie in one another")
        return tensors

    def _shape(self, key: str, shape: tuple[int, ...], settings: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape of a tensor, which may have been stored in another one to make whole blocks."""
        own = settings.get(_SHAPE + key)
        if own is None:
            return shape
        is_shape = isinstance(own, tuple) and all(type(each) is int for each in own)
        if not is_shape or math.prod(own) != math.prod(shape) or min(own, default=1) < 0:
            raise self._damaged(f"{key:.100} cannot have the shape {str(own)[:60]}")
        return own

    def _value(self, kind: int, *, needed: bool) -> Any:
        """Reads the value of a setting; passes over it, and returns None, where nobody wants it."""
        if kind == _STRING:
            return self._text(_LONGEST_NAME) if needed else self._skip(self._number("Q"))
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise self._damaged(f"a setting is of type {kind}")
        of, count = self._number("I"), self._number("Q")
        if of == _STRING:
            self.texts += count
            if self.texts > _MOST_TEXTS:
                raise self._damaged(f"it lists {self.texts} texts")
            for _ in range(count):
                self._skip(self._number("Q"))
            return None
        if of not in _NUMBERS:
            raise self._damaged(f"a setting is a list of type {of}")
        if needed and count <= _MOST_AXES:
            return tuple(self._number(_NUMBERS[of]) for _ in range(count))
        return self._skip(count * struct.calcsize(f"<{_NUMBERS[of]}"))

    def _text(self, most: int) -> str:
        length = self._number("Q")
        if length > most:
            raise self._damaged(f"a name is {length} bytes long")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a name is no text") from None

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))
        return value

    def _bytes(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise CheckpointError(f"{self.name}: is cut short in its header; copy or download it again")
        return data

    def _skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise CheckpointError(f"{self.name}: is cut short in its header; copy or download it again")
        self.file.seek(count, 1)

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: is a damaged GGUF file ({reason}); copy or download it again")
