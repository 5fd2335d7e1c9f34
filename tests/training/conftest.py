from __future__ import annotations

from pathlib import Path

import pytest

from tests.machine import one_thread as one_thread
from tests.machine import ray_cluster as ray_cluster
from tests.tiny import tiny_model, tokens_dataset
from tests.training.language_model import LanguageModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny `model` and its `data`, shared and never written to."""
    directory = tmp_path_factory.mktemp("tiny")
    tokens_dataset(directory / "data", tiny_model(directory / "model"), num_windows=30, sequence_length=24)
    return directory


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> LanguageModel:
    from stages.artifacts import Dataset

    return LanguageModel(tiny / "model", Dataset(tiny / "data"), tmp_path / "out")
