"""The terminal is asked, and shows a bar."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hub_files import NAME, files_in, weights
from hub_server import HubServer
from processes import LIMIT, launch

import diffuse
from diffuse.checkpoints.hub.progress import readable_size


def test_a_terminal_is_asked_and_shown_progress(server: HubServer, tmp_path: Path) -> None:
    path = "unet/diffusion_pytorch_model.safetensors"
    server.repositories[NAME].files[path] = weights(1, 3_000_000)
    server.repositories[NAME].cut[path] = 1_000_000  # lasts a second, so that there is something to show
    code = (
        "from diffuse import schema; from diffuse.checkpoints import locate, source; "
        f"sources = [source.Source({NAME!r}, components=('unet',))]; "
        "print(locate.download_checkpoints(sources, schema.Download.ask)[0].folder)"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "TERM": "xterm",
        "COLUMNS": "100",
        "PYTHONPATH": str(Path(diffuse.__file__).parents[1]),
    }
    ours, theirs = pty.openpty()
    process = launch([sys.executable, "-c", code], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not data:
            break
        seen += data
        if seen.endswith(b"[y/N] "):
            os.write(ours, b"y\n")
    out = process.communicate(timeout=LIMIT)[0]
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    assert files_in(Path(out.decode().strip()))[path] == weights(1, 3_000_000)
    text = seen.decode()
    assert f"{NAME}: fetch 3.00 MB? [y/N]" in text and "/3.0 MB" in text and "complete, every file checked" in text


@pytest.mark.parametrize(
    ("count", "size"), [(999, "999 bytes"), (1_000, "1.00 kB"), (2_500_000, "2.50 MB"), (5_214_865_152, "5.21 GB")]
)
def test_sizes_are_in_decimal_units(count: int, size: str) -> None:
    assert readable_size(count) == size
