"""The arguments of `diffuse serve-text`."""

from __future__ import annotations

import pytest

from diffuse.cli.options import SERVICE
from diffuse.errors import ConfigError
from diffuse.service.settings import OPTIONS, ServiceSettings, parse_service_arguments


def test_options_and_overrides() -> None:
    settings, overrides = parse_service_arguments(
        ["model=ltx2", "--host", "::1", "--port=0", "--max-queue", "9", "a=b"]
    )
    assert settings == ServiceSettings("::1", 0, max_queue=9) and overrides == ["model=ltx2", "a=b"]
    assert set(SERVICE) == set(OPTIONS)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("box.lan", False)],
)
def test_who_reaches_it(host: str, local: bool) -> None:
    assert ServiceSettings(host).is_local is local


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prot", "1"], "--prot: there is no such option; did you mean --port?"),
        (["--port", "70000"], "--port 70000: should be a whole number from 0 to 65535"),
        (["--port"], "--port : should be a whole number"),
        (["--timeout=0"], "--timeout 0: should be a whole number from 1"),
        (["--host", "--port"], "--host: needs a value"),
    ],
)
def test_a_wrong_option_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_service_arguments(words)
    assert str(caught.value).startswith(said)
