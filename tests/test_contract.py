"""The contract of `pyproject.toml`: who may import whom."""

from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_keep_the_contract() -> None:
    assert lint_imports(config_filename=str(Path(__file__).parents[1] / "pyproject.toml")) == EXIT_STATUS_SUCCESS
