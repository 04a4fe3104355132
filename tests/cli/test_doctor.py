"""What `diffuse doctor` says, on machines that differ in what works."""

from __future__ import annotations

import importlib
import io
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tracked_runs import settings

from diffuse.cli import doctor
from diffuse.device import host
from diffuse.device.gpus import GIB
from diffuse.errors import ConfigError
from diffuse.schema import Cleanup, HardwareConfig, MemoryProfileConfig, ModelConfig
from diffuse.tracking.store import Store

PROFILES = {
    "auto": MemoryProfileConfig(name="auto"),
    "full_gpu": MemoryProfileConfig(name="full_gpu", on_device=["*"]),
    "unet_gpu": MemoryProfileConfig(name="unet_gpu", on_device=["unet"], cleanup=Cleanup.phases, max_side=1024),
    "medium": MemoryProfileConfig(name="medium", on_device=["*"], max_film_size=[1280, 720], max_frames=121),
    "cpu_only": MemoryProfileConfig(name="cpu_only", half=False),
}
MODELS = {
    "small": ModelConfig(name="small", min_vram_gib={"full_gpu": 1.0, "cpu_only": 0.0}),
    "film": ModelConfig(name="film", request_defaults={"num_frames": 121}, min_vram_gib={"medium": 5.0}),
    "large": ModelConfig(name="large", min_vram_gib={"full_gpu": 16.0, "unet_gpu": 6.0, "cpu_only": 0.0}),
}


class OneCard:
    """NVML on a machine with one card."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA L4"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return "GPU-1234"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=22 * GIB, free=7 * GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return (8, 9)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.10"


class NoCard(OneCard):
    def nvmlInit(self) -> None:
        raise self.NVMLError("Driver Not Loaded")


def text_of(
    tracking: str | None = None, nvml: Any = None, config: HardwareConfig | None = None, width: int = 80
) -> str:
    stream = io.StringIO()
    rendered = doctor.report(MODELS, PROFILES, tracking and settings(tracking), nvml=nvml or NoCard(), config=config)
    Console(file=stream, width=width).print(rendered)
    return stream.getvalue()


def line_of(text: str, label: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(label))


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is an accelerator")
def test_a_machine_without_a_card() -> None:
    text = text_of()
    assert line_of(text, "NVIDIA") == "NVIDIA no card, or no driver"
    assert line_of(text, "small") == "small cpu_only" and line_of(text, "large") == "large cpu_only"
    assert line_of(text, "Python").startswith(f"Python {sys.version.split()[0]}")
    assert line_of(text, "torch").startswith(f"torch {torch.__version__}")
    assert line_of(text, "tracking") == "tracking none"
    assert f"{host.total_ram() / GIB:.1f} GiB" in line_of(text, "memory")


def test_a_machine_with_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name="", major=8, minor=9))
    text = text_of(nvml=OneCard())
    assert line_of(text, "NVIDIA 0") == "NVIDIA 0 NVIDIA L4, 7.0 of 22.0 GiB free, compute 8.9, driver 570.10"
    assert line_of(text, "would use") == "would use cuda: NVIDIA L4, free 7.0 GiB"
    assert line_of(text, "small").startswith("small full_gpu (from 1 GiB; everything on the card)")
    assert "up to 1280 x 720 and 121 frames)" in " ".join(text.split())
    assert line_of(text, "large").startswith("large what fits, by prediction (full_gpu from 16 GiB, unet_gpu from 6")
    planned = text_of(nvml=OneCard(), config=HardwareConfig(name="auto", vram_gb=24.0))
    assert line_of(planned, "large").startswith("large full_gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "hidden by" in line_of(text_of(nvml=OneCard(), width=120), "NVIDIA 0")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_a_card_that_torch_cannot_use_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    text = " ".join(text_of(nvml=OneCard()).split())
    assert "the NVIDIA L4 cannot be used" in text and "without CUDA" in text
    assert not caplog.records, "said twice"


def test_it_fits_80_columns_and_is_plain_where_there_is_no_terminal() -> None:
    text = text_of("sqlite:////a/rather/long/path/" + "folder/" * 20 + "mlflow.db", nvml=OneCard())
    assert all(len(line) <= 80 for line in text.splitlines()), "wider than the terminal"
    assert "\x1b" not in text


def test_models_that_cannot_be_placed_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "odd", ModelConfig(name="odd", min_vram_gib={"ful_gpu": 1.0}))
    text = " ".join(text_of().split())
    assert "odd none: model.min_vram_gib names the memory profile ful_gpu" in text and "full_gpu?" in text


def test_a_wrong_hardware_configuration_is_a_line() -> None:
    text = " ".join(text_of(config=HardwareConfig(name="auto", vram_gb=-1.0)).split())
    assert "would use nothing: hardware.vram_gb=-1" in text and "small cannot run: hardware.vram_gb=-1" in text


def test_a_torch_that_is_broken_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open [shared] object file')")
    (tmp_path / "pynvml.py").write_text("raise ImportError('no pynvml')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from rich.console import Console; from diffuse.cli import doctor; from diffuse.schema import ModelConfig\n"
        "Console(width=200).print(doctor.report({'tiny': ModelConfig(name='tiny')}, {}, None))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "cannot be imported: libtorch.so: cannot open [shared] object file" in done.stdout
    assert "tiny" in done.stdout and "NVIDIA" in done.stdout and done.stderr == ""


def test_it_does_not_import_mlflow() -> None:
    code = "import sys; from diffuse.cli import doctor; doctor.report({}, {}, None); assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("rich", "no-such-library"))
    assert line_of(text_of(), "no-such-library") == "no-such-library not installed"


# The tracking store


def tracking(uri: str) -> str:
    """The report's words on the store, without the line breaks."""
    text = "".join(text_of(uri, width=300).splitlines()[-2:])
    return " ".join(text.split()).removeprefix("tracking ")


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert tracking(f"sqlite:///{tmp_path}/deep/mlflow.db").endswith("not there yet, the first run makes it")
    assert list(tmp_path.iterdir()) == []


def test_a_password_is_not_shown_wherever_it_stands() -> None:
    line = tracking("postgresql://h/db?user=x&password=verysecret")
    assert "verysecret" not in line and "postgresql://h/db" in line


def test_a_store_that_is_there(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a b#.db")) as connection:
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.execute("INSERT INTO runs VALUES ('x')")
        connection.commit()
    for scheme, query in (
        ("sqlite", ""),
        ("sqlite", "?timeout=60"),
        ("sqlite+pysqlite", ""),
        ("sqlite+pysqlite", "?x=1"),
    ):
        uri = f"{scheme}:///{tmp_path}/a b#.db{query}"
        assert tracking(uri) == f"{uri}: there, 1 run"


@pytest.mark.parametrize("uri", ["sqlite:///:memory:", "sqlite:x.db", "file:x", "postgres://someone:secret@a/b"])
def test_an_address_that_can_hold_no_runs_is_called_what_a_run_calls_it(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Store.from_config(settings(uri))
    assert tracking(uri) == str(refused.value) and "secret" not in tracking(uri)


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("hello " * 100)
    assert "is no MLflow store" in tracking(f"sqlite:///{tmp_path}/notes.db")
    assert f"tracking.uri={tmp_path} can hold no runs; use sqlite:///FILE" in tracking(str(tmp_path))


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://someone:secret@127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    said = tracking(server)
    assert said.endswith(": answers") and "secret" not in said
    said = tracking(server + "/elsewhere")
    assert said.endswith("answers with status 404")


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    said = tracking("http://127.0.0.1:9")
    assert "does not answer" in said


def test_the_hub_cache_follows_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = line_of(text_of(width=300), "hub cache")
    assert f"{tmp_path / 'cache'}, not there yet" in said and "free on its disk, offline" in said
