from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.command import Regraft
from tests.machine import one_thread as one_thread
from tests.tiny import tiny_model, tokens_dataset

TRAIN = """\
name: trained
stages:
  first: {{uses: "tests.toy:Write"}}
  train:
    uses: "tests.cluster.stages:Train"
    needs: [first]
    with: {{model: {tiny}/model, data: {tiny}/data, tokens: {tokens}, batch_sequences: 4, micro_batch: 2,
            precision: fp32, checkpoint_minutes: 0, step_seconds: {seconds}}}
    resources: {{workers: {workers}, cpus: 1}}
    retries: 4
  last: {{uses: "tests.toy:Copy", inputs: {{text: train}}}}
"""
WINDOW = 24
"""Tokens of a sample; a step has 4 samples."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tokens_dataset(directory / "data", tiny_model(directory / "model"), num_windows=30, sequence_length=WINDOW)
    return directory


@pytest.fixture
def train_pipeline(tiny: Path):
    """The text of a pipeline that trains for some steps."""

    def text(steps: int, *, workers: int = 1, seconds: float = 0.0) -> str:
        return TRAIN.format(tiny=tiny, tokens=steps * 4 * WINDOW, workers=workers, seconds=seconds)

    return text


@pytest.fixture
def regraft(tmp_path: Path) -> Regraft:
    """The command, in an empty directory."""
    (tmp_path / "here").mkdir()
    return Regraft(tmp_path / "here")
