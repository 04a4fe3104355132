"""Shell completion: the shells' questions, as Hydra's scripts ask them, and the scripts themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command import Done, diffuse

# the line so far -> some of what its last word may become, and what it may not
LINES: dict[str, tuple[set[str], set[str]]] = {
    "diffuse ": ({"doctor", "sync", "model=", "seed="}, set()),
    "diffuse re": ({"reproduce"}, {"model="}),
    "diffuse mode": ({"model=", "model."}, set()),
    "diffuse model=sd2": ({"model=sd21", "model=sd2_base"}, {"model=sdxl"}),
    "diffuse -m scheduler=dpmpp": ({"scheduler=dpmpp_2m"}, {"scheduler=ddim"}),
    "diffuse scheduler=euler scheduler.use_k": ({"scheduler.use_karras_sigmas="}, set()),
    "diffuse doctor hardware=c": ({"hardware=cpu", "hardware=cuda"}, set()),
    "diffuse generate experiment=s": ({"experiment=smoke"}, set()),
    "diffuse reproduce x.png memory_profile=": ({"memory_profile=balanced"}, set()),
    "diffuse output.format=": ({"output.format=png", "output.format=mp4"}, {"output.format=Format.png"}),
    "diffuse report.make=": ({"report.make=true", "report.make=false"}, set()),
    "diffuse prompt_syntax=w": ({"prompt_syntax=weighted"}, set()),
    "diffuse --dry-run --yes model=ti": ({"model=tiny"}, set()),
    'diffuse prompt="a cat, (small" model=ti': ({"model=tiny"}, set()),
    "diffuse nosuch=3 model=ti": ({"model=tiny"}, set()),
    "diffuse hydra/launcher=su": ({"hydra/launcher=submitit_slurm"}, set()),
    "diffuse --config-d": ({"--config-dir"}, set()),
    "diffuse --cfg ": ({"job", "hydra", "all"}, {"model="}),
    "diffuse download --y": ({"--yes"}, {"--dry-run"}),
    "diffuse plan --": ({"--json", "--card", "--yes", "--multirun", "--help", "--config-dir"}, {"--measure", "--cfg"}),
    "diffuse plan -": ({"-m", "-y"}, {"-c"}),
    "diffuse doctor --m": ({"--measure"}, {"--multirun"}),
    "diffuse compare --": ({"--x", "--no-sheets", "--help"}, {"--json"}),
    "diffuse convert --": ({"--precision", "--shard-size", "--yes"}, {"--json"}),
    "diffuse sync --": ({"--help", "--config-name"}, {"--yes", "--json"}),
    "diffuse --config-dir my model=m": ({"model=mine"}, set()),
    "diffuse -cd my model=m": ({"model=mine"}, set()),
    "diffuse -cd=my plan model=m": ({"model=mine"}, set()),
    "diffuse -cd my pl": ({"plan"}, set()),
    "diffuse --config-dir my -cn start model.n": ({"model.name="}, {"model.mine="}),
    "diffuse output.name=--config-dir model=ti": ({"model=tiny"}, set()),
    "diffuse hydra.searchpath=[my] model=m": ({"model=mine"}, set()),
    "diffuse --config-dir=nosuch model=": (set(), set()),
    "diffuse compare outputs": (set(), {"output.dir="}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "mine.yaml").write_text("defaults: [tiny, _self_]\n")
    (tmp_path / "my" / "start.yaml").write_text("defaults: [config, override model: mine, _self_]\n")
    return tmp_path


def ask(line: str, cwd: Path, monkeypatch: pytest.MonkeyPatch, shell: str = "bash") -> Done:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    return diffuse("-sc", f"query={shell}", cwd=cwd)


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_completed(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ask(line, folder, monkeypatch)
    wanted, unwanted = LINES[line]
    assert (done.status, done.err) == (0, "")
    assert wanted <= {*done.out.split()} and not unwanted & {*done.out.split()}, done.out
    assert [path.name for path in folder.iterdir()] == ["my"]


def test_each_shell_gets_its_separator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = {shell: ask("diffuse d", folder, monkeypatch, shell).out for shell in ("bash", "zsh", "fish")}
    assert out == {"bash": "download doctor\n", "zsh": "download doctor\n", "fish": "download\ndoctor\n"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_for_this_command(shell: str, tmp_path: Path) -> None:
    for action in ("install", "uninstall"):
        done = diffuse("--shell-completion", f"{action}={shell}", cwd=tmp_path)
        assert (done.status, done.err) == (0, ""), done.err
    done = diffuse("-sc", f"install={shell}", cwd=tmp_path)
    assert "-sc query=" in done.out and "diffuse" in done.out


def test_bash_completes_by_the_script(tmp_path: Path) -> None:
    script = diffuse("-sc", "install=bash", cwd=tmp_path).out
    (tmp_path / "diffuse").write_text('#!/bin/sh\necho "asked $* $COMP_LINE" >&2\necho model=tiny model=sd21\n')
    (tmp_path / "diffuse").chmod(0o755)
    code = script + '\nCOMP_LINE="diffuse model=t" COMP_POINT=15 COMP_CWORD=1 COMP_WORDS=(diffuse model=t)\n'
    code += 'COMP_LINE="diffuse model=t"; COMP_CWORD=1; hydra_bash_completion; echo "${COMPREPLY[@]}"\n'
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["model=tiny"] and "asked -sc query=bash diffuse model=t" in done.stderr


@pytest.mark.parametrize("asked", [[], ["install"], ["install=tcsh"], ["remove=bash"], ["install=bash", "x"]])
def test_other_questions_are_refused(asked: list[str], tmp_path: Path) -> None:
    done = diffuse("-sc", *asked, cwd=tmp_path)
    assert (done.status, done.out) == (2, "") and "install=SHELL or uninstall=SHELL" in done.err
