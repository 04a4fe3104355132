"""The settings of the group `text_backend`."""

from __future__ import annotations

import pytest

from diffuse.config.compose import compose_config
from diffuse.config.groups import group_options
from diffuse.config.text_backend import SETTINGS, check_text_backend, is_own_encoder
from diffuse.errors import ConfigError

API = ["text_backend=api", "text_backend.url=http://localhost:1"]


@pytest.mark.parametrize("name", group_options("text_backend"))
def test_an_option_says_all_its_settings(name: str) -> None:
    """And no others."""
    cfg = compose_config([f"text_backend={name}"]).text_backend
    cfg.file, cfg.url = ("x", None) if name == "precomputed" else (None, "http://x" if name == "api" else None)
    check_text_backend(cfg)
    assert is_own_encoder(name) is (name in ("auto", "gemma3"))
    said = {field for field, value in cfg.items() if value is not None and field != "name"}
    assert said <= set(SETTINGS.get(name, ()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["text_backend.url=http://x"], "text_backend.url=http://x: is a setting of text_backend=api, and not of auto"),
        (["text_backend.token=abc"], "text_backend.token: is a setting of text_backend=api"),
        ([*API, "text_backend.file=x"], "text_backend.file=x: is a setting of text_backend=precomputed"),
        (["text_backend=precomputed"], "text_backend=precomputed: add text_backend.file=FILE"),
        (["text_backend=api"], "text_backend=api: add text_backend.url="),
        ([*API, "text_backend.url=localhost:80"], "text_backend.url=localhost:80: should be an address such as"),
        ([*API, "text_backend.url=file:///etc/x"], "text_backend.url=file:///etc/x: should be an address such as"),
        ([*API, "text_backend.url=http://x:99999"], "text_backend.url=http://x:99999: should be an address such as"),
        ([*API, "text_backend.url=http://me:pw@x"], "text_backend.url: holds a name or a password"),
        ([*API, "text_backend.timeout=0"], "text_backend.timeout=0.0: should be seconds, above 0"),
        ([*API, "text_backend.timeout=inf"], "text_backend.timeout=inf: should be seconds, above 0"),
        ([*API, "text_backend.retries=-1"], "text_backend.retries=-1: should be from 0 to 100"),
        ([*API, "text_backend.token='a b'"], "text_backend.token: should be letters, digits and signs"),
        ([*API, "text_backend.text_encoder_sha256=abc"], "text_backend.text_encoder_sha256=abc: should be a SHA-256"),
    ],
)
def test_a_wrong_setting_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_text_backend(compose_config(given).text_backend)
    assert str(caught.value).startswith(said)
