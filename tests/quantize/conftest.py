"""Models of two layers to quantise, and text for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import grafts
from grafts.hybrid.graft import HybridHeads
from grafts.loader import load_model, save_model
from stages.artifacts import Dataset
from tests.tiny import tiny_model, tokens_dataset


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 model whose norms make some inputs far stronger than others, as those of pretrained models do."""
    directory = tmp_path_factory.mktemp("parent")
    source = tiny_model(directory / "float32", hidden=64)
    model = load_model(source, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data[:6] = 8
    save_model(model, directory / "parent", tokenizer_from=source)
    return directory / "parent"


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory, parent: Path) -> Dataset:
    return tokens_dataset(tmp_path_factory.mktemp("tokens"), parent, num_windows=16)


@pytest.fixture
def hybrid(tmp_path: Path, parent: Path) -> Path:
    model = grafts.apply(load_model(parent, dtype=torch.bfloat16), [HybridHeads(full_heads=((0, 1), (2,)))])
    save_model(model, tmp_path / "hybrid", tokenizer_from=parent)
    return tmp_path / "hybrid"
