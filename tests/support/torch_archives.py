"""Files as PyTorch writes them, and hostile ones: pickles that would run a command, and zips that lie.

Whatever is run writes `MARK` into the current folder, which tests look for.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MARK = "RUN"
COMMAND = f"touch {MARK}"


class Calls:
    """A value whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def state_dict(*, generator: int = 0) -> dict[str, Tensor]:
    """Tensors as checkpoints have them: of several dtypes, views, transposed, in channels_last, parameters, empty."""
    torch.manual_seed(generator)
    return {
        "plain.weight": torch.randn(300, 400),
        "transposed.weight": torch.randn(30, 40).t(),
        "channels_last.weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last).half(),
        "parameter.bias": nn.Parameter(torch.randn(5)),
        "view.weight": torch.randn(10, 10)[2:4],
        "large.weight": torch.randn(600, 600).bfloat16(),
        "number": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "double": torch.randn(3).double(),
    }


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], compression: int = 0) -> Path:
    """Writes a zip anew with other contents of its records; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return target


def with_pickle(folder: Path, content: bytes, name: str = "hostile.ckpt") -> Path:
    """A file of `torch.save` whose pickle is another."""
    good = folder / "good.ckpt"
    if not good.exists():
        torch.save({"a": torch.arange(8.0)}, good)
    return rewrite(good, folder / name, lambda record, data: content if record.endswith("/data.pkl") else data)


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def calling_pickles() -> Iterator[tuple[str, bytes]]:
    """Yields pickles that call something, each with the global that they name."""
    for function, argument in ((os.system, COMMAND), (eval, "1"), (exec, f"open('{MARK}', 'w')"), (getattr, "x")):
        for protocol in (2, 4):
            found = pickle.dumps(Calls(function, argument), protocol)
            name = f"{function.__module__}.{function.__name__}"
            yield (name if protocol == 4 else name.replace("builtins", "__builtin__")), found
    yield "posix.system", b"(S'touch RUN'\nios\nsystem\n.".replace(b"ios", b"iposix")
    for module, function_name in (
        ("os", "popen"),
        ("subprocess", "Popen"),
        ("builtins", "__import__"),
        ("torch.hub", "load"),
        ("torch.jit", "load"),
        ("torch._utils", "os.system"),
        ("torch", "FloatStorage.__reduce__"),
        ("__torch__", "Module"),
        ("pickle", "loads"),
        ("numpy", "load"),
        ("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel"),
    ):
        words = _short(COMMAND) + b"\x85R."
        yield f"{module}.{function_name}", b"\x80\x04" + _short(module) + _short(function_name) + b"\x93" + words
        yield f"{module}.{function_name}", b"\x80\x02c" + f"{module}\n{function_name}\n".encode() + words


DAMAGED_PICKLES: Mapping[str, bytes] = {
    "nothing": b"",
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x02.",
    "a place that is not there": b"\x80\x02h\x07.",
    "a far place": b"\x80\x02]r" + struct.pack("<I", 0xFFFFFFFF) + b".",
    "an endless text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "endless bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "an endless number": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"1.",
    "an extension": b"\x80\x02\x82\x01.",
    "an object of a mark": b"\x80\x02(]o.",
    "a long line": b"\x80\x02c" + b"a" * 100_000,
    "no mark": b"\x80\x02}u.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
    "lists in lists": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 20_000 + b".",
    "a tuple that doubles, as a key": b"\x80\x02})" + b"q\x00h\x00\x86" * 100 + b"K\x01s.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a module of tuples in tuples": b"\x80\x04)" + b"\x85" * 20_000 + _short("x") + b"\x93.",
    "a reference to a text": b"\x80\x04" + _short("storage") + b"Q.",
    "a long key": b"\x80\x02}X" + struct.pack("<I", 5000) + b"x" * 5000 + b"K\x01s.",
    "a long number as the key of a dict": b"\x80\x02}\x8b" + struct.pack("<i", 4000) + b"1" * 4000 + b"}s.",
}


def on_storage(key: bytes) -> bytes:
    """The pickle of a dict with one tensor, for `with_pickle`; the opcodes make its storage's key."""
    made, typed = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"
    storage = b"(" + _short("storage") + typed + key + _short("cpu") + b"K\x08tQ"
    return b"\x80\x04}(" + _short("a") + made + b"(" + storage + b"K\x00K\x08\x85K\x01\x85\x89}tRu."


def shared_dicts(entries: int) -> dict[Any, Any]:
    """Dicts in dicts, of which each has the same one under all its keys."""
    value: dict[Any, Any] = {}
    for _ in range(3):
        value = dict.fromkeys(range(entries), value)
    return value


ENDLESS_PICKLES: Mapping[str, tuple[bytes, str]] = {
    "a storage's key of tuples in tuples": (on_storage(b")" + b"\x85" * 1_500_000), "its pickle is damaged"),
    "a storage's key that doubles": (on_storage(b")" + b"q\x05h\x05\x86" * 100), "its pickle is damaged"),
    "shared dicts": (pickle.dumps(shared_dicts(3000)), "holds no weights"),
    "a long number as a key": (
        b"\x80\x02}\x8b"
        + struct.pack("<i", 4 << 20)
        + b"1" * (4 << 20)
        + b"q\x05K\x01s"
        + b"h\x05K\x01s" * 400_000
        + b".",
        "longer name in it than any model",
    ),
}
"""What would end the process or hardly ever end, and what is said instead. They are read in a process of their own."""


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.inner.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.unused = nn.Linear(4, 4).half()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.other(self.inner(x)) + self.table
        return result


class _Writes(nn.Module):
    """Writes a file when it is loaded, in TorchScript's own language."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]
        torch.save(state[0], "RUN")


def scripts(folder: Path) -> dict[str, Path]:
    """TorchScript archives: traced, scripted, frozen, and one that writes a file when it is loaded."""
    torch.manual_seed(0)
    tiny = _Tiny().eval()
    traced = torch.jit.trace(tiny, torch.ones(1, 4))
    modules = {
        "traced": traced,
        "scripted": torch.jit.script(tiny),
        "frozen": torch.jit.freeze(traced),
        "writes": torch.jit.script(_Writes()),
    }
    paths = {name: folder / f"{name}.pt" for name in modules}
    for name, module in modules.items():
        module.save(str(paths[name]))
    torch.save(tiny.state_dict() | {"table": tiny.table}, folder / "tiny.pth")
    return paths | {"state_dict": folder / "tiny.pth"}
