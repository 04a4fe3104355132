"""Images under MLflow's names."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from PIL import Image

from diffuse.tracking.images import stage_image
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
