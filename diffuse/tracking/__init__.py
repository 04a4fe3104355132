"""Records runs in MLflow: a journal on disk, a process that delivers it, the way back for readers, and MLflow's page.

Nothing else in `diffuse` imports MLflow; drawing pictures, and what a record says, do not belong here.
"""

from diffuse.tracking.tracker import TrackedRun, Tracker, open_tracker, start_worker

__all__ = ["TrackedRun", "Tracker", "open_tracker", "start_worker"]
