"""Names of the tags that runs have in MLflow. Stores that users have hold these names, so none of them may change."""

from __future__ import annotations

from diffuse.config.run_tags import tag_text
from diffuse.config.tracking_settings import tracking_settings
from diffuse.schema import TrackingConfig

RUN_TAG = "diffuse.run"  # the run's id in the journal, by which the store is asked for it
SWEEP_TAG = "diffuse.sweep"  # the identity of the sweep that the run belongs to
JOB_TAG = "diffuse.job"  # and of its job there
KIND_TAG = "diffuse.kind"  # only runs that are no job's have it
ERROR_TAG = "diffuse.error"
VERSION_TAG = "diffuse.version"
WEIGHTS_TAG = "diffuse.weights"
PIXELS_TAG = "diffuse.pixels_sha256"
GIT_COMMIT_TAG = "mlflow.source.git.commit"  # of this package; MLflow's own name, which its page shows
USER_COMMIT_TAG = "diffuse.user_commit"  # of the repository that the command runs in

SWEEP_KIND = {KIND_TAG: "sweep"}  # of the run that sums up a sweep
LOGGED_IMAGES = {"mlflow.loggedImages": "True"}  # has MLflow's page look for images

_SWEEP_CHARACTERS = 12


def run_name(cfg: TrackingConfig, own: str, *, in_sweep: bool) -> str:
    """Returns the name of a run: the user's, which in a sweep stands before the run's own.

    Args:
        own: the name that the run has where the user gives none.
    """
    name = None if cfg.name == "none" else tracking_settings(cfg).run_name
    if name is None:
        return own
    return f"{name} {own}" if in_sweep else name


def user_tags(cfg: TrackingConfig) -> dict[str, str]:
    """Returns the user's own tags as texts."""
    return {str(key): tag_text(value) for key, value in cfg.tags.items()}


def summary_id(sweep: str) -> str:
    """Returns the `diffuse.run` of the run that sums up the sweep of that identity."""
    return f"{sweep[:_SWEEP_CHARACTERS]}-summary"
