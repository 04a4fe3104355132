"""Names of tags."""

from __future__ import annotations

from diffuse.tracking import tags


def test_names_of_tags_stay_as_they_are_in_the_stores_of_users() -> None:
    names = {value for name, value in vars(tags).items() if name.endswith("_TAG")}
    ours = ["run", "sweep", "job", "kind", "error", "version", "weights", "pixels_sha256", "user_commit"]
    assert names == {*(f"diffuse.{name}" for name in ours), "mlflow.source.git.commit"}
    assert tags.SWEEP_KIND == {"diffuse.kind": "sweep"}
    assert tags.LOGGED_IMAGES == {"mlflow.loggedImages": "True"}
    assert tags.summary_id("0123456789abcdef") == "0123456789ab-summary"
