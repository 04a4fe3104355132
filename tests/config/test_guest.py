"""Composing inside programs that use Hydra themselves, in threads and after a fork; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import LIMIT

BEGIN = """
from hydra import compose, initialize, initialize_config_dir, initialize_config_module, main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import getbase
from diffuse.config.compose import compose_config, compose_with_hydra
from diffuse.errors import ConfigError

def call():
    assert compose_config(["seed=3"]).seed == 3
    compose_with_hydra(["seed=3"])
    try:
        compose_config(["sed=3"])
    except ConfigError:
        pass

def check():
    assert compose("own", return_hydra_config=True).hydra.job.name == "mine"
    assert JobRuntime.instance().get("name") == "mine"
    assert str(getbase()) == "1.2"
"""
GUESTS = {
    "initialize": """
with initialize(".", job_name="mine", version_base="1.2"):
    call()
    check()
""",
    "initialize_config_dir": """
import os
with initialize_config_dir(os.getcwd(), job_name="mine", version_base="1.2"):
    call()
    check()
""",
    "as in a notebook, never left": """
import os
initialize_config_dir(os.getcwd(), job_name="mine", version_base="1.2")
loader = GlobalHydra.instance().config_loader()
call()
check()
assert GlobalHydra.instance().config_loader() is loader
""",
    "hydra.main": """
import logging
@main(config_path=".", config_name="own", version_base="1.2")
def app(cfg):
    logging.getLogger("app").info("before")
    name = HydraConfig.get().job.name
    handlers = list(logging.getLogger().handlers)
    call()
    logging.getLogger("app").info("after")
    assert (JobRuntime.instance().get("name"), HydraConfig.get().job.name) == (name, name) and name == "guest"
    assert logging.getLogger().handlers == handlers and str(getbase()) == "1.2"
    from pathlib import Path
    lines = (Path(HydraConfig.get().runtime.output_dir) / "guest.log").read_text()
    assert "before" in lines and "after" in lines
app()
""",
    "no Hydra of its own": """
before = JobRuntime.instance().get("name")
call()
assert not GlobalHydra.instance().is_initialized() and JobRuntime.instance().get("name") == before
with initialize(".", job_name="mine", version_base="1.2"):
    check()
""",
}
THREADS = {
    "a pool": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda n: compose_config([f"seed={n}"]).seed, range(40))) == list(range(40))
""",
    "asyncio.to_thread": """
import asyncio
async def all_of_them():
    return await asyncio.gather(*(asyncio.to_thread(compose_config, [f"seed={n}"]) for n in range(40)))
assert [cfg.seed for cfg in asyncio.run(all_of_them())] == list(range(40))
""",
}
FORK = """
import os, signal, threading
stop = threading.Event()
def compose_on():
    while not stop.is_set():
        compose_config(["seed=1"])
others = [threading.Thread(target=compose_on) for _ in range(2)]
for other in others:
    other.start()
try:
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that hangs
            os._exit(0 if compose_config(["seed=5"]).seed == 5 else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
finally:
    stop.set()
    for other in others:
        other.join()
"""


def _run(folder: Path, code: str) -> None:
    (folder / "own.yaml").write_text("a: 1\n")
    script = folder / "guest.py"
    script.write_text(BEGIN + code)
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", GUESTS)
def test_a_program_finds_its_own_hydra_again(tmp_path: Path, program: str) -> None:
    _run(tmp_path, GUESTS[program])


@pytest.mark.parametrize("threads", THREADS)
def test_threads_compose_at_the_same_time(tmp_path: Path, threads: str) -> None:
    _run(tmp_path, THREADS[threads])


def test_a_child_composes_after_a_fork_in_the_middle_of_composing(tmp_path: Path) -> None:
    _run(tmp_path, FORK)
