"""MLflow's pages as `diffuse ui` serves them: images come first, and a browser reports no errors.

`mlflow server --app-name diffuse` finds this by the entry point of that name, in a process of its own.
"""

from __future__ import annotations

from typing import Any

GROUP, NAME = "mlflow.app", "diffuse"  # the entry point
# The pages ask who is logged in. A server without accounts does not know the question, which a browser reports as an
# error; so here nobody is.
_USER = "/ajax-api/2.0/mlflow/users/current"
# In a browser that is new to them, the pages open an assistant over a quarter of the width. It still opens by a click.
_ASSISTANT = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
_SCRIPT = f"<script>localStorage.setItem('{_ASSISTANT}', 'true')</script>".encode()


def create() -> Any:
    """Returns MLflow's own application, with these two changes."""
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import app

    pages.add_url_rule(_USER, "diffuse_user", lambda: {"user": None})
    pages.after_request(_without_assistant)
    return app


def _without_assistant(answer: Any) -> Any:
    from flask import request

    if request.path == "/" and answer.status_code == 200:
        answer.direct_passthrough = False  # as a file is sent
        answer.set_data(answer.get_data().replace(b"<head>", b"<head>" + _SCRIPT, 1))
    return answer
