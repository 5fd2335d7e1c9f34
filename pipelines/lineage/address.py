"""Where MLflow is: the server the user names, or a SQLite file in the store. Imports no MLflow."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # MLflow's own defaults keep trying a dead server for minutes; the mirror can be resumed, so it gives up early.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Looks for a server on the same machine are no business of the git client.
    "GIT_PYTHON_REFRESH": "quiet",
}


def settle_environment() -> None:
    """Set what MLflow reads from the environment, unless the user has; call before importing mlflow."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def tracking_uri(store: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or the database of the store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.resolve() / 'mlflow.db'}"


def is_server(uri: str) -> bool:
    """Whether MLflow is reached over the network, and so brings its own place for artifacts."""
    return uri == "databricks" or urlsplit(uri).scheme in ("http", "https", "databricks")


def shown(uri: str) -> str:
    """`uri` without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
