"""Whether everything needed is in the cache, without a request to the network."""

from __future__ import annotations

import pytest
from hub_files import NAME, PLAIN, SMALL, files_in, locate
from hub_server import MAIN, HubServer
from huggingface_hub import constants


def test_the_second_time_touches_no_network(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = locate(NAME, variant="fp16")
    server.log.clear()
    assert locate(NAME, variant="fp16") == first
    assert locate(NAME, variant="fp16", revision=MAIN) == first
    assert locate(NAME, variant="fp16", components=("vae",)) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(NAME, variant="fp16") == first
    assert server.log == []


def test_a_missing_file_is_noticed_and_fetched(server: HubServer) -> None:
    found = locate(NAME)
    (found.folder / "tokenizer" / "merges.txt").unlink()
    server.log.clear()
    assert files_in(locate(NAME).folder) == SMALL | PLAIN
    assert server.fetched() == ["tokenizer/merges.txt"]


def test_a_cache_filled_by_another_program_is_used(server: HubServer) -> None:
    found = locate(NAME)
    for listing in found.folder.parents[1].glob("trees/*"):
        listing.unlink()
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    server.log.clear()
    assert locate(NAME) == found
    assert server.log == []
    (found.folder / "tokenizer" / "merges.txt").unlink()
    assert files_in(locate(NAME).folder) == SMALL | PLAIN
