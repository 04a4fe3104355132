"""Images under MLflow's names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command import diffuse
from compared import film, read_table
from films import FILM
from mlflow import MlflowClient
from PIL import Image
from tracked_runs import artifacts, make, runs

from diffuse.media.load import content_sha256
from diffuse.tracking.images import stage_image, stage_media
from diffuse.tracking.tags import LOGGED_IMAGES


def test_pictures_are_named_as_mlflow_names_them(picture: Path, store: Path, tmp_path: Path) -> None:
    """The page finds pictures by their names, which MLflow's own log_image is asked for here."""
    client = MlflowClient(f"sqlite:///{store}")
    run = client.create_run(client.create_experiment("x", artifact_location=(tmp_path / "files").as_uri()))
    with Image.open(picture) as image:
        client.log_image(run.info.run_id, image.convert("RGB"), key="image", step=3, timestamp=run.info.start_time)
    theirs = Path(run.info.artifact_uri.removeprefix("file://"))
    stage_image(picture, tmp_path / "files", run.info.run_id, run.info.start_time, step=3)

    def shapes(folder: Path) -> set[str]:
        parts = (path.name.split("+") for path in (folder / "images").iterdir())
        return {"+".join([*found[:5], *(["compressed.webp"] if len(found) > 6 else [".png"])]) for found in parts}

    assert shapes(tmp_path / "files") == shapes(theirs)
    assert client.get_run(run.info.run_id).data.tags.items() >= LOGGED_IMAGES.items()


@pytest.mark.parametrize("format", ["mp4", "gif", "avif", "wav"])
def test_a_film_is_staged_with_its_first_frame(format: str, tmp_path: Path) -> None:
    """And with a copy that the page plays, where it does not play the film itself."""
    path = film(4, tmp_path / "job", format)
    stage_media(path, {"sha256": content_sha256(path), "step": 0}, "run", 5, tmp_path / "files")
    staged = {str(each.relative_to(tmp_path / "files")) for each in (tmp_path / "files").rglob("*.*")}
    assert f"media/film.{format}" in staged and ("preview/film.webm" in staged) == (format == "avif")
    posters = [each for each in staged if re.fullmatch(r"images/image\+step\+0\+timestamp\+5\+[\w-]+\.png", each)]
    assert len(posters) == (format != "wav")
    for name in posters:
        assert np.abs(np.asarray(Image.open(tmp_path / "files" / name)).astype(int).mean() - 60) < 3  # the first

    with pytest.raises(ValueError, match="has changed since"):
        stage_media(path, {"sha256": "0" * 64, "step": 0}, "run", 5, tmp_path / "others")


def test_frames_of_a_film_are_artifacts_and_it_is_made_again(store: Path, tmp_path: Path) -> None:
    make(store, tmp_path, *FILM, "prompt=a cat", "output.format=frames")
    (run,) = runs(store)
    fetched = artifacts(store, run, tmp_path / "fetched")
    names = {str(each.relative_to(fetched)) for each in fetched.rglob("*") if each.is_file()}
    assert {f"media/a_cat_0/frame_{index:05}.png" for index in range(9)} | {"media/a_cat_0/sound.wav"} <= names
    assert "preview/a_cat_0.webm" in names and len([name for name in names if name.startswith("images/")]) == 2
    assert run.data.params["output.format"] == "frames" and run.data.params["model.name"] == "tiny"

    tracked = f"tracking.uri=sqlite:///{store}"
    done = diffuse("reproduce", run.info.run_id, tracked, "output.dir=again", cwd=tmp_path)
    assert done.status == 0 and ": identical\n" in done.err, done.err
    done = diffuse("compare", run.info.run_id, tracked, "--out", "report", cwd=tmp_path)
    assert done.status == 0 and len(read_table(tmp_path / "report")) == 1, done.err
