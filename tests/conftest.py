"""What several files of tests share."""

from __future__ import annotations

import gc
import logging
import signal
from pathlib import Path

import hypothesis
import pytest
from processes import (  # noqa: F401
    processes_of_the_session,
    processes_of_the_test,
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

from diffuse.tracking import mlflow_store

TESTS = Path(__file__).parent

# A shell's background jobs ignore Ctrl-C, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, however slow the machine: what fails once fails again.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


# The files with the longest tests begin, so that the processes of pytest-xdist end together.
LONGEST = (
    *("sweep/test_submitit.py", "sweep/test_interrupt.py", "sweep/test_ray.py", "sweep/test_joblib.py"),
    *("whole/test_fuzz.py", "whole/test_streaming_pixels.py", "sweep/test_foreign.py", "smoke/test_suite.py"),
    *("tracking/test_servers.py", "tracking/test_tracker.py", "whole/test_mlflow_page.py", "whole/test_bad_input.py"),
    *("reproduce/test_reproduce.py", "whole/test_reproducible.py", "whole/test_half_precision.py"),
    *("sweep/test_optuna.py", "whole/test_reference.py", "checkpoints/test_bus_error.py", "plan/test_choose_levers.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Python's searches for cycles leave out what the imports have made, of which diffusers' alone take 0.3 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small models gain nothing by a second thread, and beside other work threads wait for one another all the time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def library_log() -> None:
    """The library's log as it is before a command in the same process takes it for a terminal."""
    log = logging.getLogger("diffuse")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)
    for name, child in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "diffuse" and isinstance(child, logging.Logger):
            child.disabled = False  # as the making of an MLflow store leaves every logger


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store without runs, which costs seconds to make and nothing to copy."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow_store.create_store(file, f"sqlite:///{file}")
    return file
