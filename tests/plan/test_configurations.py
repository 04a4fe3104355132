"""Where settings come from when there are no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_files import HALF, NAME, PLAIN, SMALL, files_in
from hub_server import HubServer, Repository
from safetensors.torch import save_file

from diffuse.checkpoints.locate import download_checkpoints, locate_configurations
from diffuse.checkpoints.source import Source
from diffuse.config.compose import compose_config
from diffuse.config.groups import TINY
from diffuse.errors import ConfigError
from diffuse.pipelines.families import component_names
from diffuse.plan.configurations import find_configurations
from diffuse.schema import Download

DATA = Path(__file__).parents[1] / "data"
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@pytest.mark.parametrize("model", ["sd15", "sd2_base", "sd21", "sdxl"])
def test_published_settings_ship(model: str) -> None:
    cfg = compose_config([f"model={model}", "model.download=never"])
    found = find_configurations(cfg, component_names(cfg))
    (checkpoint,) = found.checkpoints
    assert checkpoint.revision == cfg.model.revision and not found.here
    assert found.disk_bytes is found.download_bytes is None
    assert checkpoint.config("unet")["_class_name"] == "UNet2DConditionModel"
    file = DATA / f"{model}_configs.json"
    if file.is_file():
        for component, config in json.loads(file.read_text()).items():
            assert checkpoint.config(component) == config


def test_of_the_hub_only_settings_are_fetched_and_with_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer({NAME: Repository({**SMALL, **PLAIN, **HALF})}) as hub:
        hub.is_the_hub(monkeypatch, tmp_path / "cache")
        source = Source(NAME, components=COMPONENTS, fetch_variant="fp16")
        for consent in (Download.never, Download.ask):
            with pytest.raises(ConfigError, match=r"model\.download"):
                locate_configurations([source], consent, lambda source: None)
        assert not hub.fetched()
        (found,) = locate_configurations([source], Download.yes, lambda source: None)
        assert (
            found.size is not None
            and found.size > 3000
            and found.missing == found.size - sum(len(SMALL[path]) for path in hub.fetched())
        )
        assert set(hub.fetched()) == set(SMALL) and not any(
            path.endswith(".safetensors") for path in files_in(tmp_path / "cache")
        )
        (again,) = locate_configurations([source], Download.never, lambda source: None)  # they are here now
        assert again.checkpoint.config("unet") == {"a": 1}
        (whole,) = download_checkpoints([source], Download.yes)  # what is here does not pass for all
        assert whole.files("unet")


def test_a_file_of_several_components_is_on_the_disk_once(tmp_path: Path) -> None:
    file = tmp_path / "both.safetensors"
    save_file({"any": torch.zeros(1000)}, file)
    cfg = compose_config([f"model.unet.source={file}", f"model.vae.source={file}"])
    found = find_configurations(cfg, component_names(cfg))
    (tiny,) = (TINY / "text_encoder").glob("*.safetensors")
    assert found.here and found.disk_bytes == file.stat().st_size + tiny.stat().st_size
