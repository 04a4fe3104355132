"""Runs `diffuse` in processes that cut a weights file in the middle of a step; each case is forked off this process.

Standard input has the cases by name, as JSON: `arguments`, the `file` to cut before the first module of the class
`before` computes, and how (`way`). Standard output has what each ended with.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from diffuse import txt2img
from diffuse.checkpoints import tensor_reading
from diffuse.cli.main import main
from diffuse.run import run  # noqa: F401 - imported once for all


def cut_before(kind: str, file: Path, way: str) -> None:
    """Cuts the file, once, when a module of the class `kind` is about to compute."""
    tensor_reading._LARGE_BYTES = 4096  # the tiny model's tensors are small

    def cut(module: Any, arguments: Any) -> None:
        if type(module).__name__ != kind or not file.stat().st_size > 4096:
            return
        if way == "kill":
            os.kill(os.getpid(), signal.SIGBUS)
        elif way == "another":
            other = file.with_name("another")
            other.write_bytes(bytes(1 << 16))
            with other.open("rb") as stream:
                pages = mmap.mmap(stream.fileno(), 1 << 16, access=mmap.ACCESS_COPY)
            os.truncate(other, 0)
            torch.frombuffer(pages, dtype=torch.float32).sum()
        else:
            os.truncate(file, 4096)

    register_module_forward_pre_hook(cut)


def work(arguments: list[str], file: str, before: str, way: str) -> None:
    """Ends as the command does."""
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    cut_before(before, Path(file), way)
    if way == "guest":
        txt2img("a", model=arguments[0], seed=1, num_inference_steps=1, hardware="cpu")
    if way == "faulthandler":
        faulthandler.enable()
    if way == "wakeup":
        _, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
    main(arguments)


def forked(case: dict[str, Any], log: Path) -> int:
    """Returns what a process of its own ended with, below zero for a signal."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        Path(case["folder"]).mkdir(exist_ok=True)
        os.chdir(case["folder"])
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT, 0o600), stream)
        work(case["arguments"], case["file"], case["before"], case["way"])
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(status)


if __name__ == "__main__":
    ends = {}
    for name, case in json.load(sys.stdin).items():
        ends[name] = forked(case, Path(case["folder"] + "-log"))
    print(json.dumps(ends))
