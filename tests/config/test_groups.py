"""The folder `conf/`: where it is found, and Hydra beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from diffuse.config.groups import (
    CONFIG_NAME,
    GROUPS,
    PACKAGE,
    compose_quoted,
    conf_dir,
    drop_nodes_of_plugins,
    group_options,
    known_keys,
    load_group,
    load_yaml,
)


@pytest.mark.parametrize("packaged", [True, False])
def test_the_configuration_is_found_in_a_checkout_and_in_a_wheel(packaged: bool, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "diffuse", ignore=shutil.ignore_patterns("checkpoint", "__pycache__", "conf"))
    conf = tmp_path / ("diffuse/conf" if packaged else "conf")
    shutil.copytree(conf_dir(), conf)
    code = "from diffuse.config.compose import compose_config; from diffuse.config.groups import conf_dir"
    code += "; print(conf_dir()); print(compose_config().model.name)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(conf), "tiny"], done.stderr


def test_no_plugin_brings_a_launcher_or_sweeper_of_the_same_name() -> None:
    """`ConfigStore.repo` is no public method of Hydra 1.3: this fails first where it changes."""
    Plugins.instance()
    stored = ConfigStore.instance().repo["hydra"]
    assert stored["launcher"] and "sweeper" in stored
    for group in ("launcher", "sweeper"):
        own = {path.name for path in (conf_dir() / "hydra" / group).iterdir()}
        before = set(stored[group])
        for name in (path.removesuffix(".yaml") for path in own if path.endswith(".yaml")):
            cfg = compose_quoted([f"hydra/{group}={name}"], hydra=True)
            assert cfg.hydra.runtime.choices[f"hydra/{group}"] == name
        assert own and set(stored[group]) == before  # a program around us finds them again
    dropped = drop_nodes_of_plugins()
    try:
        assert ("sweeper", "basic.yaml") in dropped and not drop_nodes_of_plugins()
    finally:
        for (group, file), node in dropped.items():
            stored[group][file] = node


def test_composing_leaves_hydra_as_it_was() -> None:
    """So that it works inside a running job."""
    was_running = GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        running = GlobalHydra.instance()
        assert running.is_initialized()
        loader = running.config_loader()
        assert compose_quoted(["seed=3"]).seed == 3
        assert GlobalHydra.instance() is running and running.config_loader() is loader
    compose_quoted([])
    assert GlobalHydra.instance().is_initialized() == was_running


def test_what_the_folder_holds() -> None:
    assert "auto" in group_options("model") and "auto" not in load_group("model")
    assert load_yaml(CONFIG_NAME).num_images == 1
    assert {"seed", "model", "model.vae.source", "output.name", "experiment"} <= set(known_keys())
    assert set(GROUPS) == {path.name for path in conf_dir().iterdir() if path.is_dir()} - {"hydra"}
