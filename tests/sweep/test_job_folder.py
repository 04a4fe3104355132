"""What a job leaves on disk, what it is known by, and what is done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import jobs_in
from damaged import damaged, mend
from films import FILM
from PIL import Image
from safetensors.torch import load_file, save_file
from sweeps import QUICK, pixels, swept

from diffuse.config.compose import compose_config, resolve_config
from diffuse.config.groups import PACKAGE
from diffuse.media.load import content_sha256, image_sha256
from diffuse.sweep.job_folder import JobFolders, job_identity

TINY = PACKAGE / "tiny" / "checkpoint"


def test_only_what_is_missing_is_made_again(tmp_path: Path, made: list[Any]) -> None:
    """Missing is what is not there, not what was made, or not what it was made from."""
    shutil.copytree(TINY, tmp_path / "model")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "in.png")
    command = ("seed=range(0,4)", "num_inference_steps=2", "model.source=model", "input_image=in.png")
    first = swept(*command, cwd=tmp_path)
    before = pixels(first, tmp_path)
    gone, cut, painted, kept = (tmp_path / path for path in first.paths)
    shutil.rmtree(gone.parent)
    cut.write_bytes(cut.read_bytes()[:-100])
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(painted)
    (kept.parent / ".diffuse-0.tmp").write_text("left by an attempt that was killed")
    stamp = kept.stat().st_mtime_ns
    made.clear()

    again = swept(*reversed(command), cwd=tmp_path)
    assert sorted(each["seed"] for batch in made for each in batch) == [0, 1, 2]
    assert kept.stat().st_mtime_ns == stamp and "3 made, 1 were there" in again.err
    for ours, theirs in zip(pixels(again, tmp_path), before, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 2
    # What somebody painted over is theirs; the picture gets a number.
    assert not np.asarray(Image.open(painted)).any() and again.paths[2].name == f"{painted.stem}_1.png"

    made.clear()
    assert "0 made, 4 were there" in swept(*command, cwd=tmp_path).err and not made

    Image.fromarray(np.full((64, 64, 3), 91, np.uint8)).save(tmp_path / "in.png")
    assert "4 made, 0 were there" in swept(*command, cwd=tmp_path).err
    (file,) = (tmp_path / "model" / "vae").glob("*.safetensors")
    tensors = load_file(file)
    tensors["decoder.conv_out.bias"] += 0.1
    file.unlink()
    save_file(tensors, file)
    assert "4 made, 0 were there" in swept(*command, cwd=tmp_path).err


def test_another_sweep_in_the_same_folder_uses_what_is_there(tmp_path: Path) -> None:
    swept("seed=1,2", "num_inference_steps=1", cwd=tmp_path)
    assert "2 made, 2 were there" in swept("seed=1,2", "num_inference_steps=1,2", cwd=tmp_path).err
    assert "2 made, 0 were there" in swept("seed=1,2", "num_inference_steps=1", "output.format=jpg", cwd=tmp_path).err
    assert "0 made, 2 were there" in swept("seed=1,2", "num_inference_steps=1", "output.format=jpg", cwd=tmp_path).err


def test_failed_jobs_are_recorded_and_tried_again(tmp_path: Path) -> None:
    model = damaged(tmp_path / "model")
    command = ("seed=1", f"model.source=model,{TINY}", "num_inference_steps=1")
    done = swept(*command, cwd=tmp_path, status=1)
    assert len(done.paths) == 1 and "1 made, 0 were there, 1 failed" in done.err
    assert "diffuse: model.source=model: the vae gave NaN" in done.err
    failed = next(each for each in jobs_in(tmp_path / "out") if each["status"] == "failed")
    assert "NaN" in failed["error"] and failed["media"] == [] and failed["record"]["request"]["seed"] == 1
    mend(model)
    assert "1 made, 1 were there, 0 failed" in swept(*command, cwd=tmp_path).err
    assert {each["status"] for each in jobs_in(tmp_path / "out")} == {"done"}


def test_what_job_json_says(tmp_path: Path) -> None:
    done = swept("seed=5", "num_inference_steps=1", "output.format=webp", cwd=tmp_path)
    (said,) = jobs_in(tmp_path / "out")
    whole = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (whole["version"], whole["axes"], whole["jobs"], whole["seed"]) == (1, [], 1, None)
    assert {*QUICK, "seed=5"} <= {*whole["overrides"]}
    assert (said["sweep"], said["status"], said["error"]) == (whole["identity"], "done", None)
    assert done.paths[0].parent.name.endswith(said["key"][:8])
    assert said["media"] == [{"file": done.paths[0].name, "pixels_sha256": image_sha256(tmp_path / done.paths[0])}]
    assert said["record"]["request"]["seed"] == 5 and "seed=5" in said["overrides"]


@pytest.mark.parametrize("format", ["webm", "frames"])
def test_films_that_are_there_are_not_made_again(format: str, tmp_path: Path) -> None:
    command = (*FILM, "seed=1,2", "num_inference_steps=1", f"output.format={format}")
    done = swept(*command, cwd=tmp_path)
    assert "2 made, 0 were there" in done.err and len(done.paths) == 2
    paths = [tmp_path / path for path in done.paths]
    for said, path in zip(jobs_in(tmp_path / "out"), sorted(paths), strict=True):
        digest = said["record"]["images"][0]["pixels_sha256"]
        assert said["media"] == [{"file": path.name, "pixels_sha256": digest, "sha256": content_sha256(path)}]
    again = swept(*command, f"objective.reference={paths[0]}", cwd=tmp_path)
    assert "0 made, 2 were there" in again.err and again.paths == done.paths

    # A film that somebody changed is theirs, and the new one gets a number. What an attempt left that was killed goes.
    changed = paths[0] / "frame_00003.png" if paths[0].is_dir() else paths[0]
    changed.write_bytes(changed.read_bytes()[:-100])
    paths[1].with_name(".diffuse-0.tmp").mkdir()  # a folder of frames that was not finished
    paths[1].with_name("job.json").unlink()
    last = swept(*command, cwd=tmp_path)
    assert "2 made, 0 were there" in last.err
    assert last.paths[0].name == f"{paths[0].stem}_1{paths[0].suffix}" and last.paths[1] == done.paths[1]
    assert {each.name for each in paths[1].parent.iterdir()} == {paths[1].name, "job.json"}


def test_no_format_is_the_format_that_earlier_sweeps_had() -> None:
    keys = [job_identity(resolve_config(compose_config(given))) for given in ([], ["output.format=png"])]
    assert keys[0] == keys[1] and keys[0]["output"]["format"] == "png"


@pytest.mark.parametrize(
    ("sampler", "option", "value"),
    [
        ("dpmpp_2m", "algorithm_type", "sde-dpmsolver++"),
        ("dpmpp_2m", "solver_order", 3),
        ("dpmpp_2m_sde", "use_lu_lambdas", True),
        ("dpmpp_2m_sde", "lambda_min_clipped", -5.1),
        ("euler", "interpolation_type", "log_linear"),
    ],
)
def test_options_that_earlier_sweeps_lack_count_where_they_are_given(sampler: str, option: str, value: Any) -> None:
    plain = job_identity(resolve_config(compose_config([f"scheduler={sampler}"])))["scheduler"]
    given = job_identity(resolve_config(compose_config([f"scheduler={sampler}", f"scheduler.{option}={value}"])))
    assert option not in plain
    assert given["scheduler"] == {**plain, option: value}
    assert "use_karras_sigmas" in plain  # which the first version had


def test_limits_of_size_are_no_part_of_a_job_unless_they_shrink_it() -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        given = ["prompt=x", "seed=1", "memory_profile=cpu_only", *overrides]
        return job_identity(resolve_config(compose_config(given)))

    plain = identity()
    later = {"max_film_size", "max_frames", "sharded", "vae_tile_frames"}
    assert "fit" not in plain and not later & set(plain["memory_profile"])
    assert identity("memory_profile.max_frames=9") == plain != identity("memory_profile.vae_tile_frames=5")
    shrunk = identity("fit=shrink")
    assert shrunk["fit"] == "shrink" and shrunk["memory_profile"]["max_frames"] == 33
    assert identity("fit=shrink", "memory_profile.max_frames=9") != shrunk


def test_folders_name_axes_apart(tmp_path: Path) -> None:
    names = {"seed": "1", "lora.0.weight": "0", "lora.1.weight": "1", "model.unet.source": "a", "model.vae.source": "b"}
    folders = JobFolders(tmp_path, [*names])
    path = folders.path([f"{name}={value}" for name, value in names.items()], "k" * 64)
    assert path.name.startswith("lora.0.weight_0-lora.1.weight_1-unet.source_a-vae.source_b-seed_1-")
    assert JobFolders(tmp_path, ["lora.0.weight"]).path(["lora.0.weight=1"], "k" * 64).name.startswith("weight_1-")
