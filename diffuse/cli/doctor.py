"""`diffuse doctor`: what this machine has, what is installed, and which memory profile each model would get.

It reports what it can: a library that is missing or broken is a line of the report, never an exception.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import diffuse
from diffuse.device import hardware
from diffuse.device.hardware import GIB, Hardware
from diffuse.errors import DiffuseError
from diffuse.schema import HardwareConfig, MemoryProfileConfig, ModelConfig

LIBRARIES = (
    "torch",
    "accelerate",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "hydra-core",
    "omegaconf",
    "mlflow",
    "numpy",
    "pillow",
    "nvidia-ml-py",
    "rich",
)
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError, ValueError)  # how a damaged installation fails
_SECONDS_FOR_A_SERVER = 3
_MISSING = "[yellow]not installed[/]"


def report(
    models: Mapping[str, ModelConfig],
    profiles: Mapping[str, MemoryProfileConfig],
    tracking_uri: str | None,
    nvml: Any | None = None,
    config: HardwareConfig | None = None,
) -> RenderableType:
    """The report, for a rich console; it fits 80 columns.

    `models` and `profiles` are those of `conf/`, by name; `tracking_uri` is the store's, None where nothing is tracked;
    `config` is the hardware to plan for, by default what is found. Neither the store nor any cache is created.
    """
    found, complaint = _detect(config or HardwareConfig(name="auto"), nvml)
    return Group(
        *_section("System", _system()),
        *_section("PyTorch", _torch()),
        *_section("Cards", _cards(nvml, found, complaint)),
        *_section("Libraries", _libraries()),
        *_section("Memory profile of each model", _models(models, profiles, found, complaint)),
        *_section("Files", [("hub cache", _hub_cache()), ("tracking", _tracking(tracking_uri))]),
    )


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=14)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(f"  {label}"), value)
    return [Text(title, style="bold"), table, Text("")]


def _system() -> list[tuple[str, str]]:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    bfloat16 = {True: ", bfloat16 unit", False: ", no bfloat16 unit", None: ""}[hardware.cpu_has_bfloat16()]
    memory = [_gib(_ram())] if _ram() else []
    available = _meminfo("MemAvailable")
    if available:
        memory.append(f"{_gib(available)} available")
    limit = _container_limit()
    if limit:
        memory.append(f"the container may use {_gib(limit)}")
    return [
        ("diffuse", diffuse.__version__),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("system", escape(platform.platform(terse=True))),
        ("processor", escape(hardware.cpu_name()) + bfloat16),
        ("cores", f"{cores}" + (f", {usable} of them usable" if usable != cores else "")),
        ("memory", ", ".join(memory) or "unknown"),
    ]


def _torch() -> list[tuple[str, str]]:
    try:
        import torch
    except _BROKEN as error:
        return [("torch", f"[red]cannot be imported[/]: {escape(_line(error))}")]
    build = f"built with CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    if torch.version.hip:
        build = f"built with ROCm {torch.version.hip}"
    metal = ", Metal" if torch.backends.mps.is_available() else ""
    return [
        ("torch", f"{torch.__version__}, {build}{metal}"),
        ("CPU kernels", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
    ]


def _detect(config: HardwareConfig, nvml: Any | None) -> tuple[Hardware | None, str]:
    before, hardware.log.disabled = hardware.log.disabled, True  # the report says it all itself
    try:
        return hardware.detect(config, nvml), ""
    except (DiffuseError, *_BROKEN) as error:
        return None, _line(error)
    finally:
        hardware.log.disabled = before


def _cards(nvml: Any | None, found: Hardware | None, complaint: str) -> list[tuple[str, str]]:
    cards = hardware.all_gpus(nvml)
    visible = [card.uuid for card in hardware.visible_gpus(nvml)]
    rows = []
    for card in cards:
        memory = "memory unknown"
        if card.total_gib is not None and card.free_gib is not None:
            memory = f"{card.free_gib:.1f} of {card.total_gib:.1f} GiB free"
        facts = [
            card.name,
            memory,
            "" if card.capability is None else f"compute {card.capability[0]}.{card.capability[1]}",
            f"driver {card.driver}" if card.driver else "",
        ]
        hidden = "" if card.uuid in visible else " [yellow](hidden by CUDA_VISIBLE_DEVICES)[/]"
        rows.append((f"NVIDIA {card.index}", escape(", ".join(fact for fact in facts if fact)) + hidden))
    if not cards:
        rows.append(("NVIDIA", "no card, or no driver"))
    if found is None:
        rows.append(("would use", f"[red]nothing[/]: {escape(complaint)}"))
        return rows
    plan = ""
    if found.vram_free_gib is not None:
        plan = f", {'planned for' if found.planned else 'free'} {found.vram_free_gib:.1f} GiB"
    rows.append(("would use", f"[green]{found.device}[/]: {escape(found.name)}{plan}"))
    if cards and found.device != "cuda":
        rows.append(("", f"[yellow]{escape(hardware.why_no_cuda(nvml=nvml))}[/]"))
    return rows


def _libraries() -> list[tuple[str, str]]:
    rows = []
    for name in LIBRARIES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, _MISSING))
    return rows


def _models(
    models: Mapping[str, ModelConfig],
    profiles: Mapping[str, MemoryProfileConfig],
    found: Hardware | None,
    complaint: str,
) -> list[tuple[str, str]]:
    if found is None:
        return [(name, f"[red]cannot run[/]: {escape(complaint)}") for name in models]
    try:
        from diffuse.device import memory as memory_profile
    except _BROKEN as error:
        return [(name, f"[red]cannot run[/]: {escape(_line(error))}") for name in models]
    rows = []
    for name, model in models.items():
        try:
            chosen = memory_profile.fitting(profiles, model.min_vram_gib, found)
        except DiffuseError as error:
            rows.append((name, f"[red]none[/]: {escape(str(error))}"))
            continue
        where = ", ".join(chosen.on_device).replace(memory_profile.EVERY, "everything") or "nothing"
        needs = model.min_vram_gib.get(chosen.name, 0)
        limit = "" if chosen.max_side is None else f", up to {chosen.max_side} a side"
        on = "" if found.device == "cpu" and not found.planned else f" (from {needs:g} GiB; {where} on the card{limit})"
        rows.append((name, f"[green]{chosen.name}[/]{on}"))
    return rows


def _hub_cache() -> str:
    try:
        from huggingface_hub import constants
    except _BROKEN as error:
        return f"[red]huggingface_hub cannot be imported[/]: {escape(_line(error))}"
    offline = ", [yellow]offline (HF_HUB_OFFLINE)[/]" if constants.HF_HUB_OFFLINE else ""
    folder = Path(constants.HF_HUB_CACHE)
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    state = "" if there == folder else ", not there yet"
    return f"{escape(str(folder))}{state}, {_gib(shutil.disk_usage(there).free)} free on its disk{offline}"


def _tracking(uri: str | None) -> str:
    """The store and whether it can be reached; it is opened for reading only."""
    if not uri:
        return "none"
    shown = escape(re.sub(r"//[^/@]*@", "//***@", uri))  # a password does not belong on a screen
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return f"{shown}: {_server(uri)}"
    if parts.scheme == "sqlite":
        return f"{shown}: {_database(uri)}"
    if parts.scheme in ("", "file"):
        return f"{shown}: [red]a folder of files, which MLflow no longer opens; use sqlite:///FILE[/]"
    return f"{shown}: not checked"


def _server(uri: str) -> str:
    address = re.sub(r"//[^/@]*@", "//", uri).rstrip("/")  # urllib takes a name and password for a part of the host
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=_SECONDS_FOR_A_SERVER):
            return "[green]answers[/]"
    except urllib.error.HTTPError as error:
        return f"[yellow]answers with status {error.code}[/]"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"[red]does not answer[/] ({escape(_line(reason))})"


def _database(uri: str) -> str:
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        there = path.absolute().parent
        while not there.exists():
            there = there.parent
        writable = os.access(there, os.W_OK)
        return "not there yet, the first run makes it" if writable else f"[red]{escape(str(there))} is not writable[/]"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        return f"[red]is no MLflow store[/] ({escape(_line(error))})"
    locked = "" if os.access(path, os.W_OK) else ", [red]not writable[/]"
    return f"[green]there[/], {runs} run{'' if runs == 1 else 's'}{locked}"


def _ram() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 0


def _meminfo(field: str) -> int:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _container_limit() -> int:
    """Bytes that a container's memory is limited to; 0 where it is not, or the system does not tell."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdigit() and int(text) < _ram() else 0


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _line(error: object) -> str:
    """The first line of what went wrong."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
