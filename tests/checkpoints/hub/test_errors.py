"""Failures of the network and of the hub, explained in one line."""

from __future__ import annotations

import pytest
from hub_files import NAME, download, locate, message
from hub_server import MAIN, HubServer
from huggingface_hub import constants


def test_a_pinned_revision_and_one_that_is_not_there(server: HubServer) -> None:
    server.repositories[NAME].tags = ("main", "v1")
    assert locate(NAME, revision="v1").revision == MAIN
    assert locate(NAME, revision=MAIN).revision == MAIN
    text = message(lambda: locate(NAME, revision="v2"))
    assert "has no revision v2" in text and "model.revision" in text


def test_a_repository_that_is_not_there(server: HubServer) -> None:
    assert "no such repository" in message(lambda: locate("owner/nothing"))
    server.repositories[NAME].private = True
    assert "or it is private" in message(lambda: locate(NAME))


def test_gated_repositories_are_explained(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories[NAME].gated = True
    text = message(lambda: locate(NAME))
    assert "is gated" in text and f"{server.url}/{NAME}" in text and "HF_TOKEN" in text
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    assert "your token has no access" in message(lambda: locate(NAME, components=("vae",)))


def test_a_token_that_is_refused(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "does not accept your token" in message(lambda: locate(NAME))


def test_a_hub_that_is_down(server: HubServer) -> None:
    server.repositories[NAME].failing = True
    assert "answered with status 503" in message(lambda: locate(NAME))


def test_no_network(server: HubServer) -> None:
    server.__exit__()
    text = message(lambda: locate(NAME))
    assert f"transfer from {server.url} failed" in text and "check the network" in text


def test_offline_mode_is_respected(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = message(lambda: locate(NAME))
    assert "HF_HUB_OFFLINE is set" in text and "diffuse download" in text
    assert "HF_HUB_OFFLINE is set" in message(lambda: download(NAME, yes=True))
    assert server.log == []
