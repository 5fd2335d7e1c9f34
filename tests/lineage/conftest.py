"""One MLflow database for all tests of this folder: its first migration takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.lineage.address import settle_environment

settle_environment()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose MLflow database exists; tests keep apart by run and pipeline names."""
    from pipelines.lineage.tracker import Tracker

    root = tmp_path_factory.mktemp("store")
    Tracker(root)
    return root


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
