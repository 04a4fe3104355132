"""Regional compilation: the repeated blocks of a model are compiled by torch, and nothing around them.

torch's compiler takes more than a second to import. It is imported only where a block is compiled.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from diffuse.errors import HardwareError, first_line
from diffuse.schema import Compile

if TYPE_CHECKING:
    from torch import nn

    from diffuse.device.hardware import Hardware

_COMPILED_SHAPES = 1024  # of one kind of block, for all pictures that a process makes
_COMPILERS = {"darwin": "clang++", "win32": "cl"}  # that torch takes where CXX names none; g++ elsewhere


def check_compiler(hw: Hardware) -> None:
    """Raises HardwareError where torch cannot compile for the device, and says what it lacks."""
    if hw.compile is Compile.none:
        return
    way_out = "or use hardware.compile=none"
    if shutil.which(os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")) is None:
        raise HardwareError(
            f"hardware.compile={hw.compile.value} needs a C++ compiler, and there is none: install g++, or name one in "
            f"the environment variable CXX; {way_out}"
        )
    if hw.device == "cuda" and find_spec("triton") is None:
        raise HardwareError(
            f"hardware.compile={hw.compile.value} needs Triton, which is not there for the {hw.name}: install the "
            f"package triton; {way_out}"
        )


def compile_blocks(module: nn.Module, *, deterministic: bool) -> None:
    """Marks each block whose class says that it is `compiled` as one; torch compiles it at its first call.

    A block's weights are arguments of the code, which therefore serves all blocks of a class and a shape, and goes on
    serving after a module has left the device and come back. Nothing around the blocks is compiled, so that hooks, and
    whatever else is not arithmetic, stay as they are. Shapes are constants in the code: a new one is compiled again.

    Args:
        deterministic: choose no kernel by measuring its time, so that every run computes the same bits.
    """
    import torch.compiler.config

    # By default the ninth shape of a block would run uncompiled, and a U-Net alone has more.
    torch.compiler.config.recompile_limit = _COMPILED_SHAPES
    torch.compiler.config.accumulated_recompile_limit = _COMPILED_SHAPES
    # Convolutions convert their weights to this layout; done once here, it is not part of each call.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which its stub leaves out
    options = {"deterministic": True} if deterministic else None
    for block in module.modules():
        if getattr(type(block), "compiled", False):
            block.compile(dynamic=False, options=options)


@contextmanager
def uncompiled(hw: Hardware) -> Iterator[None]:
    """Runs blocks that were compiled as if they were not, in the `with` block."""
    if hw.compile is Compile.none:
        yield
        return
    import torch.compiler

    with torch.compiler.set_stance("force_eager"):
        yield


def is_compiler_error(error: BaseException) -> bool:
    """Returns true for an error that torch's compiler raised.

    torch has no public class for these (2.13): all of them derive from this one.
    """
    compiler = sys.modules.get("torch._dynamo.exc")  # it is there once a block was compiled
    return compiler is not None and isinstance(error, compiler.TorchDynamoException)


def compiler_advice(name: str, error: BaseException) -> str:
    """Returns one line for a component that could not be compiled: the reason, and what to do."""
    reason = first_line(error).rstrip(".:")
    return f"the {name} could not be compiled ({reason}): use hardware.compile=none"
