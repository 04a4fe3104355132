"""`diffuse doctor`: the hardware, the libraries, and the memory profile that each model would get.

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
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import diffuse
from diffuse.config.tracking_settings import tracking_settings
from diffuse.device import gpus, hardware, host
from diffuse.device.gpus import GIB
from diffuse.device.hardware import Hardware
from diffuse.device.profile import EVERY, auto_profile, check_thresholds, lacks_room
from diffuse.device.size_limits import SizeLimits
from diffuse.errors import DiffuseError, RunError
from diffuse.paths import user_path
from diffuse.schema import HardwareConfig, MemoryProfileConfig, ModelConfig, TrackingConfig
from diffuse.tracking.store import Store
from diffuse.tracking.upgrade import store_age

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
    tracking: TrackingConfig | None,
    nvml: Any | None = None,
    config: HardwareConfig | None = None,
    mistakes: Mapping[str, DiffuseError] | None = None,
) -> RenderableType:
    """Returns the report for a rich console; it fits 80 columns. Neither the store nor any cache is created.

    Args:
        models: those of `conf/model`, by name.
        profiles: those of `conf/memory_profile`, by name.
        tracking: the settings of the store; None where nothing is tracked.
        nvml: see `diffuse.device.gpus`.
        config: the hardware to plan for; None detects it.
        mistakes: of the user's own options, by `GROUP=OPTION`.
    """
    hw, error = _detect(config or HardwareConfig(name="auto"), nvml)
    return Group(
        *_section("System", _system()),
        *_section("PyTorch", _torch()),
        *_section("Cards", _cards(nvml, hw, error)),
        *_section("Rates", [*_rates(), *_scores(hw)]),
        *_section("Libraries", _libraries()),
        *_section("Memory profile of each model", [*_models(models, profiles, hw, error), *_mistakes(mistakes or {})]),
        *_section("Files", [("hub cache", _hub_cache()), ("tracking", _tracking(tracking))]),
    )


def measure(config: HardwareConfig) -> None:
    """Measures how fast the device and the processor compute, and writes it beside the outputs, for `diffuse plan`.

    Raises:
        HardwareError: the device is not there.
        RunError: the file cannot be written.
    """
    from diffuse.plan.rates import RATES_FILE, measure_rates, write_rates

    found = hardware.detect(replace(config, vram_gb=None))
    hardware.apply(found)
    processor = replace(found, device="cpu", name=host.cpu_name(), capability=None)
    try:
        for each in [found] if found.device == "cpu" else [found, processor]:
            write_rates(measure_rates(each))
    except OSError as error:
        raise RunError(f"{RATES_FILE} cannot be written: {error.strerror}") from error


def _rates() -> list[tuple[str, str]]:
    try:
        from diffuse.plan.rates import read_rates
    except _BROKEN as error:
        return [("", f"[red]cannot be read[/]: {escape(_line(error))}")]
    rows = []
    for rates in read_rates().values():
        speeds = [f"{tflops:.3g} TFLOP/s in {dtype}" for dtype, tflops in rates.tflops.items()]
        copies = [f"copies to it {rates.copy_gb_s:.3g} GB/s"] if rates.copy_gb_s else []
        rows.append(("measured", f"{escape(rates.name)}: {', '.join([*speeds, *copies])}"))
    return rows or [("", "not measured; diffuse doctor --measure does it, for the times of diffuse plan")]


def _scores(hw: Hardware | None) -> list[tuple[str, str]]:
    """Returns how good the predictions of memory were in the runs on this device."""
    try:
        from diffuse.plan.scores import prediction_scores

        scores = prediction_scores(hardware=None if hw is None else hw.name)
    except _BROKEN as error:
        return [("predictions", f"[red]cannot be read[/]: {escape(_line(error))}")]
    return [] if scores is None else [("predictions", f"of memory, {scores.line()}")]


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=14)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(f"  {label}"), value)
    return [Text(title, style="bold"), table, Text("")]


def _system() -> list[tuple[str, str]]:
    cores, usable = host.cpu_cores()
    bfloat16 = {True: ", bfloat16 unit", False: ", no bfloat16 unit", None: ""}[host.cpu_has_bfloat16()]
    total, available, limit = host.total_ram(), host.available_ram(), host.container_ram_limit()
    memory = [_gib(total)] if total else []
    if available:
        memory.append(f"{_gib(available)} available")
    if limit:
        memory.append(f"the container may use {_gib(limit)}")
    return [
        ("diffuse", diffuse.__version__),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("system", escape(platform.platform(terse=True))),
        ("processor", escape(host.cpu_name()) + bfloat16),
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
    before, hardware.log.disabled = hardware.log.disabled, True  # the report has its own line for each
    try:
        return hardware.detect(config, nvml), ""
    except (DiffuseError, *_BROKEN) as error:
        return None, _line(error)
    finally:
        hardware.log.disabled = before


def _cards(nvml: Any | None, hw: Hardware | None, error: str) -> list[tuple[str, str]]:
    cards = gpus.all_gpus(nvml)
    visible = [card.uuid for card in gpus.visible_gpus(nvml)]
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
    if hw is None:
        rows.append(("would use", f"[red]nothing[/]: {escape(error)}"))
        return rows
    plan = ""
    if hw.vram_free_gib is not None:
        plan = f", {'planned for' if hw.planned else 'free'} {hw.vram_free_gib:.1f} GiB"
    rows.append(("would use", f"[green]{hw.device}[/]: {escape(hw.name)}{plan}"))
    if cards and hw.device != "cuda":
        rows.append(("", f"[yellow]{escape(gpus.explain_missing_cuda(nvml=nvml))}[/]"))
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
    hw: Hardware | None,
    error: str,
) -> list[tuple[str, str]]:
    if hw is None:
        return [(name, f"[red]cannot run[/]: {escape(error)}") for name in models]
    rows = []
    for name, model in models.items():
        try:
            check_thresholds(profiles, model.min_vram_gib)
            if lacks_room(model.min_vram_gib, hw):
                needed = ", ".join(f"{profile} from {gib:g} GiB" for profile, gib in model.min_vram_gib.items() if gib)
                rows.append((name, f"[green]what fits, by prediction[/]{needed and f' ({needed})'}"))
                continue
            chosen = auto_profile(profiles, model.min_vram_gib, hw)
        except DiffuseError as misfit:
            rows.append((name, f"[red]none[/]: {escape(str(misfit))}"))
            continue
        where = ", ".join(chosen.on_device).replace(EVERY, "everything") or "nothing"
        needs = model.min_vram_gib.get(chosen.name, 0)
        limits = SizeLimits(chosen, model.size_multiple, 1 if "num_frames" in model.request_defaults else None)
        limit = f", up to {words}" if (words := limits.words()) else ""
        on = "" if hw.device == "cpu" and not hw.planned else f" (from {needs:g} GiB; {where} on the card{limit})"
        rows.append((name, f"[green]{chosen.name}[/]{on}"))
    return rows


def _mistakes(mistakes: Mapping[str, DiffuseError]) -> list[tuple[str, str]]:
    return [(option, f"[red]cannot be used[/]: {escape(str(error))}") for option, error in mistakes.items()]


def _hub_cache() -> str:
    try:
        from huggingface_hub import constants
    except _BROKEN as error:
        return f"[red]huggingface_hub cannot be imported[/]: {escape(_line(error))}"
    offline = ", [yellow]offline (HF_HUB_OFFLINE)[/]" if constants.HF_HUB_OFFLINE else ""
    folder = user_path(constants.HF_HUB_CACHE, "HF_HUB_CACHE")
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    state = "" if existing == folder else ", not there yet"
    return f"{escape(str(folder))}{state}, {_gib(shutil.disk_usage(existing).free)} free on its disk{offline}"


def _tracking(cfg: TrackingConfig | None) -> str:
    """Returns the store and whether it can be reached; it is opened for reading only."""
    if cfg is None:
        return "none"
    try:
        store = Store.from_config(cfg)
    except DiffuseError as error:
        return f"[red]{escape(str(error))}[/]"
    settings = tracking_settings(cfg)
    uri, origin = settings.uri, settings.origin("uri")
    shown = escape(store.public_uri)  # a password does not belong on a screen
    if origin.startswith("MLFLOW_"):
        shown = f"{shown} ({origin})"
    if store.file is not None:
        return f"{shown}: {_database(store.file)}"
    if uri.startswith(("http://", "https://")):
        return f"{shown}: {_server(uri)}"
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


def _database(path: Path) -> str:
    if not path.exists():
        existing = path.absolute().parent
        while not existing.exists():
            existing = existing.parent
        writable = os.access(existing, os.W_OK)
        return (
            "not there yet, the first run makes it" if writable else f"[red]{escape(str(existing))} is not writable[/]"
        )
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error as error:
        return f"[red]is no MLflow store[/] ({escape(_line(error))})"
    age = {
        "older": ", [yellow]of an older MLflow, which the next run upgrades[/]",
        "newer": ", [red]of a newer MLflow than this one[/]",
    }.get(store_age(path.absolute()), "")
    locked = "" if os.access(path, os.W_OK) else ", [red]not writable[/]"
    return f"[green]there[/], {runs} run{'' if runs == 1 else 's'}{age}{locked}"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _line(error: object) -> str:
    """Returns the first line of an error."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
