"""Reads a pickle as data: plain values, and inert notes of what it would have had Python make. Nothing is called.

`torch.load(weights_only=True)` runs nothing either, and judges this reader in the tests. It is not used, because it
takes the bytes of a compressed record for the weights where it maps the file, unpacks a record of any size into memory,
refuses what training programs wrote beside the weights, and does not say where in the file a tensor lies.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, cast

from diffuse.errors import CheckpointError

_MOST_OPCODES = 2_000_000  # the largest published files have a tenth; each makes a small object at most
_MOST_BYTES = 64 << 20  # of a pickle, which holds no weights
_LONGEST_LINE = 4096  # the name of a class is one, and so is a key of a dict
_MOST_BITS = 64  # of a number that is a key
_MARK = object()

# Opcodes that push their argument, the same value, or nothing.
_ARGUMENTS = frozenset(
    """
    BININT BININT1 BININT2 LONG1 LONG4 INT LONG BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 BINSTRING SHORT_BINSTRING STRING
    """.split()  # noqa: SIM905
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SKIPPED = frozenset({"PROTO", "FRAME"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class Global(NamedTuple):
    """The name of a class or function. It is never looked up."""

    name: str


class Reference(NamedTuple):
    """Keeps the words for something that lies outside of the pickle."""

    value: Any


class Product:
    """Notes what a pickle would have had a global make: the arguments, and what it would have put into the result."""

    __slots__ = ("arguments", "items", "state", "what")

    def __init__(self, what: str, arguments: Any) -> None:
        self.what, self.arguments = what, arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}


class BoundedReader:
    """A file of which a reader takes no more than fits a small memory, whatever the file asks for."""

    def __init__(self, file: BinaryIO, most: int = _MOST_BYTES) -> None:
        self._file, self._left = file, most
        self.tell, self.seek, self.seekable = file.tell, file.seek, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Returns up to `size` bytes, or all.

        Raises:
            ValueError: with them it would be more than there may be.
        """
        data = self._file.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        if len(data) > self._left:
            raise ValueError("it holds more than any published file")
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        """Returns one line, which ends early where it is longer than any name."""
        line = self._file.readline(min(_LONGEST_LINE, self._left))
        self._left -= len(line)
        return line


def read_pickle(
    file: BinaryIO | bytes,
    allows: Callable[[str], bool],
    name: str,
    on_reference: Callable[[Reference], None] = lambda reference: None,
) -> Any:
    """Reads one pickle, and leaves the file behind it.

    Args:
        file: where it begins, or its bytes.
        allows: tells of a global's name whether it may be in the pickle.
        name: of the file, for messages.
        on_reference: is given each `Reference`.

    Returns:
        None, truth values, numbers, texts, bytes, lists, tuples, dicts, `Global`, `Reference` and `Product`.

    Raises:
        CheckpointError: it names a global that is not allowed, is damaged, or was made to fill the memory.
        OSError: the file cannot be read.
    """
    stream: Any = BoundedReader(io.BytesIO(file) if isinstance(file, bytes) else file)
    try:
        return _Machine(allows, name, on_reference).run(stream)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        raise CheckpointError(f"{name}: its pickle is damaged; copy or download it again") from None


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, allows: Callable[[str], bool], name: str, on_reference: Callable[[Reference], None]) -> None:
        self.allows, self.name, self.on_reference = allows, name, on_reference
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.name_length = 0

    def run(self, stream: Any) -> Any:
        for count, (opcode, found, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST_OPCODES:
                raise CheckpointError(f"{self.name}: its pickle has more parts than any model; it is refused")
            name, argument = opcode.name, cast(Any, found)
            if name in _ARGUMENTS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _PUTS:
                self.memo[argument] = self.stack[-1]
            elif name in _GETS:
                self.stack.append(self.memo[argument])
            elif name == "STOP":
                return self.stack.pop()
            elif name not in _SKIPPED:
                self._step(name, argument)
        raise ValueError

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            stack.append(_MARK)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise ValueError
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "FROZENSET"):
            stack.append(tuple(self._above_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "LIST":
            stack.append(self._above_mark())
        elif name == "DICT":
            items = self._above_mark()
            stack.append({})
            self._set(items)
        elif name == "APPEND":
            self._add([stack.pop()])
        elif name in ("APPENDS", "ADDITEMS"):
            self._add(self._above_mark())
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set([key, value])
        elif name == "SETITEMS":
            self._set(self._above_mark())
        elif name == "BINPERSID":
            stack.append(self._reference(stack.pop()))
            self.on_reference(stack[-1])
        elif name == "GLOBAL":
            stack.append(self._global(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            named = isinstance(module, str) and isinstance(last, str) and len(module) + len(last) < _LONGEST_LINE
            stack.append(self._global(f"{module}.{last}" if named else "a nameless one"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, what = stack.pop(), stack.pop()
            stack.append(self._product(what, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Product):
                stack[-1].state = state
            elif not isinstance(stack[-1], dict):  # an ordered one's attributes, which no weight is among
                raise ValueError
        elif name == "INST":
            self._global(argument.replace(" ", "."))
            raise ValueError
        else:
            raise CheckpointError(f"{self.name}: its pickle has the opcode {name}, which no file of weights needs")

    def _global(self, what: str) -> Global:
        if not self.allows(what):
            raise CheckpointError(
                f"{self.name}: asks for {what:.100}, which no weights need, and is refused; nothing of it was run: "
                "take the checkpoint as .safetensors"
            )
        self.name_length += len(what)
        if self.name_length > _MOST_BYTES:
            raise CheckpointError(f"{self.name}: its pickle has more names than any model; it is refused")
        return Global(what)

    def _reference(self, value: Any) -> Reference:
        """Returns a reference to a storage, whose key is a text: to hash a tuple of tuples may end the process."""
        if not isinstance(value, tuple) or len(value) < 5 or type(value[2]) is not str:
            raise ValueError
        return Reference(value)

    def _product(self, what: Any, arguments: Any) -> Any:
        if not isinstance(what, Global) or not isinstance(arguments, tuple):
            raise ValueError
        if what.name == "collections.OrderedDict" and not arguments:
            return {}
        return Product(what.name, arguments)

    def _above_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Product):
            raise ValueError

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        values = target.items if isinstance(target, Product) else target
        if not isinstance(values, dict) or len(items) % 2:
            raise ValueError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No weight has another name, and a tuple of tuples of tuples would take for ever to be hashed.
            if isinstance(key, str | int | float | bytes):
                self._check_key(key)
                values[key] = value

    def _check_key(self, key: str | int | float | bytes) -> None:
        """Refuses what takes long to be hashed, compared or written each time."""
        is_long = len(key) > _LONGEST_LINE if isinstance(key, str | bytes) else False
        if is_long or (isinstance(key, int) and key.bit_length() > _MOST_BITS):
            raise CheckpointError(f"{self.name}: its pickle has a longer name in it than any model; it is refused")
