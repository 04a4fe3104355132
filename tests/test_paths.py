"""`~` stands for the home folder wherever a path is taken; one that names no user is refused in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command import diffuse as run
from command import smoke

import diffuse
from diffuse.errors import ConfigError
from diffuse.paths import user_path

NOBODY = "~no-such-user-here"
REASON = "there is no user no-such-user-here"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("picture")
    return folder / smoke("output.dir=.", "prompt=a cat", cwd=folder).paths[0]


@pytest.fixture
def home(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(picture, folder / "cat.png")
    (folder / "prompts.txt").write_text("a dog\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_a_path_without_is_left_alone(home: Path) -> None:
    for text in ("", "a", "./~", "a/~/b", "a~", "/~x"):
        assert user_path(text) == Path(text)
    assert user_path("~") == home and user_path(Path("~/a b")) == home / "a b"
    assert user_path("~root/x").is_absolute()
    with pytest.raises(ConfigError, match=f"^output.dir={NOBODY}/x: {REASON}; write the folder out, or ./{NOBODY} "):
        user_path(f"{NOBODY}/x", "output.dir")


def test_pictures_are_saved_there(home: Path, tmp_path: Path) -> None:
    assert smoke("output.dir=~/out", cwd=tmp_path).paths[0].parent == home / "out"
    assert smoke("-m", "output.dir=~/sweep", "report.make=false", cwd=tmp_path).paths[0].parents[1] == home / "sweep"
    done = run("--dry-run", "model=tiny", "seed=1", "output.dir=~/dry", cwd=tmp_path)
    assert f"-> {home}/dry/" in done.out
    generation = diffuse.txt2img("a", seed=1, num_inference_steps=1, save="~/py", tracking="none", progress=False)
    assert generation.paths[0].parent == home / "py"
    assert generation.save("~/again")[0].parent == home / "again"
    assert not list(tmp_path.rglob("~*"))


def test_files_are_read_from_there(home: Path, tmp_path: Path) -> None:
    files = (
        "input_image=~/cat.png",
        "mask_image=~/cat.png",
        "prompt_file=~/prompts.txt",
        "objective.reference=~/cat.png",
    )
    smoke(*files, cwd=tmp_path)
    done = run("compare", "~/cat.png", "--out", "~/report", "--reference=~/cat.png", cwd=tmp_path)
    assert done.status == 0 and done.paths[0].parent == home / "report", done.err
    shutil.copytree(home, home / "several", ignore=shutil.ignore_patterns("report"))
    done = run("compare", "~/several", cwd=tmp_path)
    assert done.status == 0 and done.paths[0].parent == home / "several" / "report", done.err
    done = run("reproduce", "~/cat.png", "output.dir=~/made", "tracking=none", cwd=tmp_path)
    assert done.status == 0 and list((home / "made").iterdir()), done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["output.dir={}/out"],
        ["-m", "output.dir={}/out"],
        ["--dry-run", "seed=1", "output.dir={}/out"],
        ["input_image={}/a.png"],
        ["input_image=~/cat.png", "mask_image={}"],
        ["prompt_file={}/a.txt"],
        ["objective.reference={}/a.png"],
        ["model.source={}/model"],
        ["model=auto", "model.source={}"],
        ["model.vae.source={}/vae"],
        ["tracking=mlflow", "tracking.uri=sqlite:///{}/a.db"],
        ["tracking=mlflow", "tracking.journal={}/a"],
        ["tracking=mlflow", "tracking.artifact_location={}/a"],
        ["--junit={}/a.xml", "experiment=smoke"],
        ["--junit", "{}/a.xml", "experiment=smoke"],
        ["compare", "{}/a.png"],
        ["compare", "~/cat.png", "--out", "{}/report"],
        ["compare", "~/cat.png", "--reference={}"],
        ["reproduce", "{}/a.png"],
        ["reproduce", "~/cat.png", "output.dir={}/a"],
    ],
    ids=" ".join,
)
def test_no_such_user(arguments: list[str], home: Path, tmp_path: Path) -> None:
    arguments = [argument.replace("{}", NOBODY) for argument in arguments]
    own = [] if arguments[0] in ("compare", "reproduce") else ["num_inference_steps=2"]
    own += [] if any("tracking" in each for each in arguments) or arguments[0] == "compare" else ["tracking=none"]
    done = run(*arguments, *own, cwd=tmp_path)
    assert done.status == 2 and REASON in done.err, done.err
    assert done.err.count("\n") == 1 and "Traceback" not in done.err and not done.out, done.err
    assert {path.name for path in tmp_path.iterdir()} == {"home"} and not list(tmp_path.rglob("~*"))


def test_python_names_a_model_there(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=REASON):
        diffuse.load_pipeline(NOBODY)
    shutil.copytree(Path(diffuse.__file__).parent / "tiny" / "checkpoint", home / "model")
    assert diffuse.load_pipeline("~/model").settings["model.source"] == "model.source=~/model"
