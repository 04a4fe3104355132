"""Only the needed files of a repository are fetched."""

from __future__ import annotations

import pytest
from hub_files import HALF, NAME, PLAIN, SMALL, files_in, locate, message, weights
from hub_server import MAIN, HubServer, Repository

from diffuse.checkpoints.single_file import SingleFile
from diffuse.errors import ConfigError
from diffuse.schema import Download


def test_only_what_is_needed_is_fetched(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    found = locate(NAME)
    assert files_in(found.folder) == SMALL | PLAIN
    assert server.fetched() == sorted(SMALL | PLAIN)
    assert (found.source, found.revision, found.variant) == (NAME, MAIN, None)
    assert [path.name for path in found.files("unet")] == ["diffusion_pytorch_model.safetensors"]
    out, err = capsys.readouterr()
    assert out == ""
    size = sum(len(data) for data in (SMALL | PLAIN).values()) - len(SMALL["model_index.json"])
    assert err == f"{NAME} is not here yet: fetching {size / 1000:.2f} kB (10 files)\n"


def test_a_variant_and_the_plain_weights_where_it_is_missing(server: HubServer) -> None:
    found = locate(NAME, variant="fp16")
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert files_in(found.folder) == SMALL | HALF | {vae: PLAIN[vae]}
    assert len(found.files("text_encoder")) == 2


def test_the_smaller_variant_is_fetched_where_nothing_is_here(server: HubServer) -> None:
    vae = "vae/diffusion_pytorch_model.safetensors"
    whole = {path: data * 4 for path, data in PLAIN.items() if path != vae}
    server.repositories["owner/both"] = Repository({**SMALL, **whole, **HALF, vae: PLAIN[vae]})
    found = locate("owner/both", fetch_variant="fp16")
    assert files_in(found.folder) == SMALL | HALF | {vae: PLAIN[vae]} and found.variant == "fp16"
    server.log.clear()
    assert locate("owner/both", fetch_variant="fp16") == found and server.log == []


def test_full_precision_that_is_here_is_used(server: HubServer) -> None:
    here = locate(NAME)
    server.log.clear()
    assert locate(NAME, fetch_variant="fp16") == here and server.log == []
    # A file of it that is gone is fetched, and not all of the other variant.
    (here.folder / "tokenizer" / "merges.txt").unlink()
    assert locate(NAME, fetch_variant="fp16").variant is None
    assert server.fetched() == ["tokenizer/merges.txt"]


def test_a_variant_that_is_asked_for_goes_first(server: HubServer) -> None:
    locate(NAME)
    assert locate(NAME, variant="fp16", fetch_variant="bf16").variant == "fp16"


def test_a_variant_that_nobody_has_published_is_not_missed(server: HubServer) -> None:
    assert locate(NAME, fetch_variant="bf16").variant is None
    assert server.fetched() == sorted(SMALL | PLAIN)


def test_weights_published_in_half_precision_alone(server: HubServer) -> None:
    names = {path: data for path, data in HALF.items() if path not in PLAIN}
    vae = {"vae/diffusion_pytorch_model.fp16.safetensors": PLAIN["vae/diffusion_pytorch_model.safetensors"]}
    server.repositories["owner/half"] = Repository({**SMALL, **names, **vae})
    assert locate("owner/half", fetch_variant="fp16").variant == "fp16"
    server.log.clear()
    assert locate("owner/half", fetch_variant="fp16").variant == "fp16" and server.log == []


def test_only_some_components(server: HubServer) -> None:
    found = locate(NAME, components=("vae", "scheduler"))
    assert sorted(files_in(found.folder)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert files_in(locate(NAME).folder) == SMALL | PLAIN


def test_repositories_that_cannot_be_used(server: HubServer) -> None:
    files = {**SMALL, **PLAIN}
    unet = "unet/diffusion_pytorch_model"
    cases: dict[str, tuple[dict[str, bytes], str]] = {
        "pickles": ({**SMALL, "unet/model.ckpt": b""}, "holds only model.ckpt"),
        "single": ({"v2.safetensors": b""}, "has no model_index.json"),
        "partial": ({k: v for k, v in files.items() if not k.startswith("vae/")}, "has no folder vae"),
        "half": ({**SMALL, f"{unet}.fp16.safetensors": b""}, "set model.variant=fp16"),
    }
    for name, (content, says) in cases.items():
        server.repositories[f"owner/{name}"] = Repository(content)
        assert says in message(lambda name=name: locate(f"owner/{name}"))  # type: ignore[misc]
    assert "no variant bf16" in message(lambda: locate(NAME, variant="bf16"))
    assert not any(path.endswith((".safetensors", ".bin")) for path in server.fetched())


def test_one_file_of_a_repository(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`OWNER/NAME/FILE`, in a folder too; only that is fetched, and only once."""
    server.repositories["owner/files"] = Repository(
        {"v2.safetensors": weights(1), "sub/vae.pt": b"x", "README.md": b""}
    )
    found = locate("owner/files/v2.safetensors")
    assert isinstance(found, SingleFile) and found.file.read_bytes() == weights(1)
    assert (found.source, found.revision) == ("owner/files/v2.safetensors", MAIN)
    assert server.fetched() == ["v2.safetensors"]
    assert "owner/files/v2.safetensors is not here yet: fetching 1.07 kB (1 files)" in capsys.readouterr().err
    server.log.clear()
    assert locate("owner/files/v2.safetensors") == found and server.log == []
    part = locate("owner/files/sub/vae.pt", components=("vae",), single=True, setting="model.vae")
    assert part.component == "vae" and part.file.read_bytes() == b"x"
    assert "has no file v3.ckpt; it has v2.safetensors" in message(lambda: locate("owner/files/v3.ckpt"))
    assert "such as owner/files/v2.safetensors" in message(lambda: locate("owner/files"))
    assert "model.download=never" in message(lambda: locate("owner/files/v4.ckpt", Download.never), ConfigError)
    assert "does not exist" in message(lambda: locate("owner/files/folder/in/it"))


def test_the_settings_beside_a_lora_come_with_it(server: HubServer) -> None:
    """Also where another program has fetched the file alone."""
    name = "sub/adapter_model.safetensors"
    files = {name: weights(1), "sub/adapter_config.json": b"{}", "adapter_config.json": b"[]"}
    server.repositories["owner/peft"] = Repository(files)
    found = locate(f"owner/peft/{name}")
    assert isinstance(found, SingleFile) and found.file.with_name("adapter_config.json").read_bytes() == b"{}"
    assert server.fetched() == ["sub/adapter_config.json", name]
    found.file.with_name("adapter_config.json").unlink()
    for listing in found.file.parents[3].glob("trees/*"):
        listing.unlink()
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    assert "model.download=never" in message(lambda: locate(f"owner/peft/{name}", Download.never), ConfigError)
    server.log.clear()
    assert locate(f"owner/peft/{name}") == found and found.file.with_name("adapter_config.json").is_file()
    server.log.clear()
    assert locate(f"owner/peft/{name}") == found and server.log == []
    server.repositories["owner/bare"] = Repository({"adapter_model.safetensors": weights(1)})
    bare = locate("owner/bare/adapter_model.safetensors")
    server.log.clear()
    assert locate("owner/bare/adapter_model.safetensors") == bare and server.log == []
