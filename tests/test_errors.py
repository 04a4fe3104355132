"""What an error says of its cause: whose code raised it, and whether the request or the run was wrong."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from diffuse.errors import ConfigError, DiffuseError, MediaError, RunError, is_wrong_request, raised_in


def test_whose_code_raised_an_error() -> None:
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_override("a=[")
    assert raised_in(caught.value, "omegaconf", "hydra") and not raised_in(caught.value, "omegaconf")
    with pytest.raises(ValueError) as ours:
        int("x")
    assert not raised_in(ours.value, "hydra") and raised_in(ours.value, __name__.partition(".")[0])
    assert not raised_in(ValueError(), "hydra")  # never raised


def test_whether_the_request_is_wrong() -> None:
    for error in (ConfigError("x"), MediaError("x"), DiffuseError("x")):
        assert is_wrong_request(error)
    for other in (RunError("x"), ValueError("x"), None):
        assert not is_wrong_request(other)
