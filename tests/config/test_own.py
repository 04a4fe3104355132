"""The user's own configuration by `--config-dir`, `--config-name` and `hydra.searchpath`, in commands and in Python."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import pytest
import yaml
from command import Done, diffuse
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

from diffuse import api
from diffuse.config.compose import compose_config, compose_with_hydra, own_configuration
from diffuse.config.groups import compose_quoted, conf_dir, group_options, load_group, without_nodes_of_plugins
from diffuse.config.own import OwnConfig, own_config, own_config_of, use_own_config
from diffuse.errors import ConfigError
from diffuse.media.load import read_record
from diffuse.sweep.composer import JobComposer
from diffuse.sweep.launchers.foreign import JobLoader

EXPERIMENT = "# @package _global_\n"
FILES = {
    "model/mine.yaml": """\
defaults:
  - tiny
  - override /scheduler@_global_.scheduler: mine
  - _self_
name: mine
request_defaults:
  guidance_scale: 3
min_vram_gib:
  lean: 1
""",
    "scheduler/mine.yaml": "defaults: [euler, _self_]\nname: mine\nuse_karras_sigmas: true\n",
    "memory_profile/lean.yaml": "defaults: [cpu_only, _self_]\nname: lean\nbatch_size: 1\n",
    "hardware/mine.yaml": "defaults: [cpu, _self_]\nname: mine\nthreads: 1\n",
    "tracking/mine.yaml": "defaults: [none, _self_]\ntags: {lab: a}\n",
    "refiner/mine.yaml": "defaults: [none, _self_]\n",
    "experiment/base.yaml": EXPERIMENT
    + """\
defaults:
  - override /model: mine
  - override /hardware: mine
  - override /tracking: mine
prompt: a cat
seed: 4
num_inference_steps: 1
report:
  make: false
""",
    "experiment/sweep.yaml": EXPERIMENT
    + """\
defaults: [base, _self_]
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      guidance_scale: 2,3
""",
    "experiment/again.yaml": EXPERIMENT + "defaults: [sweep, _self_]\nnum_images: 2\n",
    "experiment/inner/one.yaml": EXPERIMENT + "defaults: [/experiment/base, _self_]\nnum_images: 2\n",
    "style/oil.yaml": EXPERIMENT + "negative_prompt: photo\n",
    "hydra/launcher/mine.yaml": "defaults: [joblib]\nn_jobs: 1\n",
    "mine.yaml": "defaults:\n  - config\n  - override experiment: base\n  - _self_\noutput:\n  name: named\n",
    "swept.yaml": "defaults: [config, override experiment: sweep, _self_]\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with the user's own files in `my conf`, one group of them in another place."""
    for name, text in FILES.items():
        file = tmp_path / "my conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def run(*arguments: str, cwd: Path) -> Done:
    done = diffuse(*arguments, cwd=cwd)
    assert done.status == 0, done.err
    return done


def test_own_files_of_every_group(folder: Path) -> None:
    chosen = ["model=mine", "memory_profile=lean", "hardware=mine", "tracking=mine", "refiner=mine", "experiment=base"]
    done = run("--cfg", "job", "--config-dir", "my conf", *chosen, cwd=folder)
    cfg = yaml.safe_load(done.out)
    assert (cfg["model"]["name"], cfg["scheduler"]["name"], cfg["memory_profile"]["name"]) == ("mine", "mine", "lean")
    assert (cfg["hardware"]["threads"], cfg["tracking"]["tags"], cfg["prompt"], cfg["seed"]) == (
        1,
        {"lab": "a"},
        "a cat",
        4,
    )
    assert cfg["scheduler"]["use_karras_sigmas"] and cfg["model"]["request_defaults"]["guidance_scale"] == 3
    for place in (["hydra.searchpath=[my conf]"], [f"hydra.searchpath=['file://{folder}/my conf']"], ["-cd=my conf"]):
        assert run("--cfg", "job", *place, *chosen, cwd=folder).out == done.out


def test_a_single_run_and_its_reproduction(folder: Path) -> None:
    done = run("--config-dir", "my conf", "experiment=base", "output.dir=out", cwd=folder)
    assert done.out == "out/a_cat_4.png\n"
    config = read_record(folder / "out/a_cat_4.png")["config"]
    assert (config["model"]["name"], config["scheduler"]["name"]) == ("mine", "mine")
    own = ["--config-dir", "my conf", "hardware=mine", "memory_profile=lean", "tracking=none", "output.dir=again"]
    again = run("reproduce", "out/a_cat_4.png", *own, cwd=folder)
    assert "cat_4.png: identical" in again.err and Path(again.out.split()[0]).parts[0] == "again"
    found = run("reproduce", "out/a_cat_4.png", "hydra.searchpath=[my conf]", *own[2:-1], "output.dir=b", cwd=folder)
    assert "cat_4.png: identical" in found.err


def test_a_primary_configuration_of_ones_own(folder: Path) -> None:
    done = run("--config-dir", "my conf", "--config-name", "mine.yaml", "--dry-run", "output.dir=out", cwd=folder)
    assert "named" in done.out and "seed 4" in done.out
    assert "seed 9" in run("-cd", "my conf", "-cn", "mine", "--dry-run", "seed=9", cwd=folder).out


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=sweep"],
        ["experiment=again", "num_images=1"],
        ["--config-name", "swept"],
        ["-m", "experiment=sweep"],
        ["-m", "--config-name", "mine", "guidance_scale=2,3"],
        ["-m", "experiment=base", "model=mine,tiny"],
        ["-m", "experiment=base,inner/one"],
    ],
    ids=" ".join,
)
def test_sweeps(arguments: list[str], folder: Path) -> None:
    done = run("--config-dir", "my conf", "--dry-run", *arguments, cwd=folder)
    assert [line.split()[0] for line in done.out.splitlines()] == ["make", "make"]


def test_a_sweep_is_made_and_goes_on(folder: Path) -> None:
    place = "hydra.searchpath=[my conf]"
    done = run(place, "experiment=sweep", "output.dir=out", cwd=folder)
    assert [read_record(folder / path)["request"]["guidance_scale"] for path in done.paths] == [2, 3]
    moved = folder / "elsewhere"
    (folder / "my conf").rename(moved)
    again = run("--config-dir", str(moved), "experiment=sweep", "output.dir=out", cwd=folder)
    assert "2 were there" in again.err


@pytest.mark.parametrize("place", ["--config-dir", "hydra.searchpath"])
def test_a_worker_of_another_process_finds_the_files(place: str, folder: Path) -> None:
    own, override = str(folder / "my conf"), [f"hydra.searchpath=[{folder}/my conf]"]
    overrides = override if place == "hydra.searchpath" else []
    with own_configuration(overrides, None if overrides else own):
        cfg = compose_with_hydra([*own_config().overrides, "hydra/launcher=mine"])
    with use_own_config(own_config_of(cfg.hydra)):
        assert load_group("memory_profile")["lean"].batch_size == 1
    assert own_config_of(compose_with_hydra([]).hydra) == OwnConfig()


WORKERS = {
    "--config-dir": ([], "my conf", "mine"),
    "an absolute folder": ([], "{}/my conf", "mine"),
    "with its suffix": ([], "my conf", "mine.yaml"),
    "in a package below": ([], "my conf", "inner/main"),
    "a searchpath in the primary": ([], "first", "searched"),
    "a package in the searchpath of the primary": ([], "first", "packaged"),
    "hydra.searchpath": (["hydra.searchpath=[my conf]"], "first", "main"),
    "hydra.searchpath alone": (["hydra.searchpath=[my conf]"], None, None),
}


@pytest.mark.parametrize("place", WORKERS)
def test_a_worker_composes_what_the_command_does(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "my conf/inner").mkdir()
    (folder / "my conf/inner/main.yaml").write_text(EXPERIMENT + "defaults: [/config, _self_]\noutput: {name: named}\n")
    (folder / "lamps").mkdir()
    (folder / "lamps/__init__.py").touch()
    (folder / "lamps/model").mkdir()
    (folder / "lamps/model/mine.yaml").write_text(FILES["model/mine.yaml"].replace("mine", "euler", 1))
    (folder / "first").mkdir()
    text = "defaults: [config, _self_]\noutput: {name: named}\n"
    (folder / "first/main.yaml").write_text(text)
    (folder / "first/searched.yaml").write_text(f"{text}hydra: {{searchpath: ['file://{folder}/my conf']}}\n")
    (folder / "first/packaged.yaml").write_text(f"{text}hydra: {{searchpath: ['pkg://lamps']}}\n")
    overrides, where, name = WORKERS[place]
    with own_configuration(overrides, where and where.format(folder), name):
        own, model = own_config(), "tiny" if place.startswith("a package") else "mine"
        cfg = compose_with_hydra([*own.overrides, f"model={model}"])
        named = compose_quoted([]).output.name
        loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
    with use_own_config(own_config_of(cfg.hydra)):
        again = own_config()
        assert (again.folder, again.name, again.folders) == (own.folder, own.name, own.folders)
        assert compose_quoted([]).output.name == named == ("named" if name else None)
    with without_nodes_of_plugins():  # as the command hands it over
        handed = pickle.dumps(JobLoader(loader))
    kept = pickle.loads(handed)  # what plugins have stored is there again, as in a process of its own
    assert JobComposer(kept.loader).load_sweep_config(cfg, [f"model={model}", "seed=2"]).seed == 2
    assert kept.load_sweep_config(cfg, [f"model={model}", "seed=3"]).hydra.sweeper.zip is None


def test_doctor_plans_own_models(folder: Path) -> None:
    for arguments in (["doctor", "--config-dir", "my conf"], ["--config-dir=my conf", "doctor"]):
        done = run(*arguments, "hardware.vram_gb=6", "tracking=none", cwd=folder)
        row = next(line for line in done.out.splitlines() if line.split()[:1] == ["mine"])
        assert "lean" in row
        assert "mine" not in run("doctor", "tracking=none", cwd=folder).out


def test_python_calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    place = ["hydra.searchpath=[my conf]"]
    made = api.txt2img(experiment="base", model="mine", overrides=place, progress=False)
    assert made.record["config"]["model"]["name"] == "mine"
    assert not any("searchpath" in each for each in made.record["overrides"])
    pipeline = api.load_pipeline("mine", hardware="mine", overrides=place)
    assert pipeline("x", seed=1, num_inference_steps=1, progress=False).record["config"]["scheduler"]["name"] == "mine"
    assert own_config() == OwnConfig()
    with pytest.raises(ConfigError, match="there is no such model"):
        api.load_pipeline("mine")


def test_a_group_of_ones_own(folder: Path) -> None:
    base = ["--config-dir", "my conf", "experiment=base", "--cfg", "job", "-p", "negative_prompt"]
    assert run(*base, "+style=oil", cwd=folder).out.strip() == "photo"
    assert "+style=null: should be NAME=VALUE" in diffuse(*base, "+style=null", cwd=folder).err
    for wrong, said in (("+style=oill", "did you mean oil?"), ("+stile=oil", "there is no field or group stile")):
        done = diffuse(*base, wrong, cwd=folder)
        assert done.status == 2 and said in done.err, done.err


def test_a_package_in_the_searchpath(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lamps", raising=False)  # another test's package of this name
    package = folder / "lamps" / "conf"
    (folder / "my conf").rename(folder / "lamps")
    (folder / "lamps").rename(folder / "conf")
    (folder / "lamps").mkdir()
    (folder / "conf").rename(package)
    for each in (package, package.parent):
        (each / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    with own_configuration(["hydra.searchpath=[pkg://lamps.conf]"]):
        cfg = compose_config(["hydra.searchpath=[pkg://lamps.conf]", "model=mine"])
        assert cfg.model.name == "mine" and "mine" in group_options("model")
    sys.modules.pop("lamps", None)


def test_a_searchpath_of_the_primary_configuration(folder: Path) -> None:
    first = folder / "first"
    first.mkdir()
    (first / "main.yaml").write_text(
        f"defaults: [config, override model: mine, _self_]\nhydra:\n  searchpath: ['file://{folder}/my conf']\n"
    )
    with own_configuration([], str(first), "main"):
        assert compose_config().model.name == "mine"
        assert load_group("memory_profile")["lean"].batch_size == 1


def test_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for arguments in (["--config-dir", "~/my conf"], ["hydra.searchpath=[~/my conf]"]):
        assert run(*arguments, "model=mine", "--cfg", "job", "-p", "model.name", cwd=folder / "my conf").out == "mine\n"


@pytest.mark.parametrize("place", ["~/my conf", "file://~/my conf"])
def test_a_home_folder_in_a_primary_configuration(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "first").mkdir()
    (folder / "first" / "main.yaml").write_text(
        f"defaults: [config, override model: mine, _self_]\nhydra:\n  searchpath: ['{place}']\n"
    )
    chosen = ("--config-dir", "first", "--config-name", "main", "--cfg", "job", "-p", "model.name")
    done = run(*chosen, cwd=folder)
    assert (done.out, done.err) == ("mine\n", "")
    with own_configuration([], str(folder / "first"), "main"):
        cfg = compose_with_hydra(["memory_profile=lean"])
        assert (cfg.model.name, cfg.memory_profile.name) == ("mine", "lean")
        assert own_config_of(cfg.hydra).folders == (folder / "first", folder / "my conf")
    (folder / "first" / "main.yaml").write_text("defaults: [config]\nhydra:\n  searchpath: ['~nosuchuser/conf']\n")
    err = diffuse(*chosen, cwd=folder).err
    assert "there is no user nosuchuser" in err and "main.yaml:3: hydra.searchpath=~nosuchuser/conf" in err


def test_it_holds_for_the_block_alone(folder: Path) -> None:
    with own_configuration([], str(folder / "my conf")):
        assert "lean" in group_options("memory_profile") and load_group("memory_profile")["lean"].name == "lean"
        assert compose_quoted(["model=mine"]).model.name == "mine"
    assert "lean" not in group_options("memory_profile")
    with pytest.raises(ConfigError, match="no such model"):
        compose_config(["model=mine"])


PLACES = {
    ("--config-dir", "nosuch"): "--config-dir: nosuch: there is no such folder",
    ("--config-dir", "my conf/mine.yaml"): "--config-dir: my conf/mine.yaml: is no folder",
    ("--config-dir=",): "--config-dir: needs a value",
    ("--config-dir", "--cfg"): "--config-dir: needs a value",
    ("--config-name", "mine"): "there is no mine.yaml in the package; --config-dir DIR says where it is",
    ("--config-dir", "my conf", "--config-name", "mni"): "did you mean mine?",
    ("--config-name", "../cd/mine"): "write --config-dir ../cd --config-name mine",
    ("--config-dir", "my conf", "--config-name", "inner/../mine"): "should be a name in the folder of --config-dir",
    ("--config-name", "/cd/mine.yaml"): "write --config-dir /cd --config-name mine",
    ("--config-name", "~/mine"): "write --config-dir ~ --config-name mine",
    ("--config-dir", "my conf", "--config-name", "../my conf/mine"): "should be a name in the folder",
    ("--config-path", "my conf"): "there is no such option",
    ("hydra.searchpath=[nosuch]",): "hydra.searchpath: nosuch: there is no such folder",
    ("hydra.searchpath=my conf",): "should be a list of folders, such as [my conf]",
    ("hydra.searchpath=[pkg://nosuch.conf]",): "there is no such package",
    ("hydra.searchpath=[http://x]",): "should be a folder, or pkg://PACKAGE",
    ("--config-dir", "my conf", "model=mni"): "did you mean mine?",
}


@pytest.mark.parametrize("arguments", PLACES, ids=" ".join)
def test_places_that_are_not_there(arguments: tuple[str, ...], folder: Path) -> None:
    done = diffuse(*arguments, "prompt=x", cwd=folder)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert PLACES[arguments] in done.err
    assert [path.name for path in folder.iterdir()] == ["my conf"]


# own options with a mistake -> what is said of it
BROKEN = {
    ("memory_profile", "defaults: [nothere, _self_]\n"): "half.yaml:1: memory_profile=nothere: there is no such",
    ("memory_profile", "defaults: [auto, _self_]\nhalf: perhaps\n"): "half.yaml:2: memory_profile.half",
    ("memory_profile", "defaults: [auto, _self_]\nhalff: true\n"): "half.yaml:2: ",
    ("memory_profile", "- a list\n"): "half.yaml:1: holds a list",
    ("model", "defaults: [tiny, _self_]\nmin_vram_gib: 3\n"): "half.yaml:2: model.min_vram_gib",
    ("model", "a: [\n"): "half.yaml:2: is no YAML",
}


@pytest.mark.parametrize(("group", "text"), BROKEN)
def test_a_mistake_in_a_file_that_is_not_chosen(group: str, text: str, folder: Path) -> None:
    said = BROKEN[group, text]
    (folder / "my conf" / group / "half.yaml").write_text(text)
    with own_configuration([f"{group}.half=true"], str(folder / "my conf")):
        options = load_group(group)
    assert "half" in options and "half" not in [*options] and "nosuch" not in options
    with pytest.raises(ConfigError, match=re.escape(f"{folder}/my conf/{group}/{said}")):
        options["half"]
    with pytest.raises(KeyError):
        options["nosuch"]


def test_a_run_and_doctor_beside_a_mistake(folder: Path) -> None:
    place = folder / "my conf" / "memory_profile" / "half.yaml"
    place.write_text("defaults: [nothere, _self_]\n")
    common = ("--config-dir", "my conf", "tracking=none")
    run("experiment=base", "output.dir=out", *common, cwd=folder)
    said = f"{place}:1: memory_profile=nothere: there is no such memory_profile"
    out = run("doctor", *common, cwd=folder).out
    assert "memory_profile=half" in out and "".join(said.split()) in "".join(out.split())
    done = diffuse("memory_profile=half", "prompt=x", "model=tiny", *common, cwd=folder)
    assert done.status == 2 and said in done.err, done.err
