from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grafts.loader import load_model, save_model, stored_dtype
from tests.tiny import tiny_model

IDS = torch.arange(24)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def files(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_reloads_identically(tmp_path: Path, tie: bool):
    source = tiny_model(tmp_path / "source", tie_embeddings=tie)
    model = load_model(source, dtype=torch.float32)
    save_model(model, tmp_path / "copy", tokenizer_from=source)
    again = load_model(tmp_path / "copy", dtype=torch.float32)
    assert not model.training
    assert torch.equal(logits(model), logits(again))
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tie
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert "im_start" in (tmp_path / "copy" / "chat_template.jinja").read_text()


def test_the_bytes_depend_on_the_weights_alone(tmp_path: Path):
    first, second = (tiny_model(tmp_path / name) for name in ("first", "second"))
    for source, target in ((first, "a"), (second, "elsewhere")):
        save_model(load_model(source, dtype=torch.bfloat16), tmp_path / target, tokenizer_from=source)
    assert files(tmp_path / "a") == files(tmp_path / "elsewhere")
    assert str(tmp_path) not in (tmp_path / "a" / "config.json").read_text()
    assert stored_dtype(tmp_path / "a") == torch.bfloat16


def test_a_missing_tensor_is_refused_not_invented(tmp_path: Path):
    source = tiny_model(tmp_path / "m")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(source, dtype=torch.float32)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "m")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ValueError, match="does not load"):
        load_model(source, dtype=torch.float32)


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(tmp_path, dtype=torch.float32)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="pickled weights are never read"):
        load_model(tmp_path, dtype=torch.float32)


def test_an_unknown_architecture_is_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "m")
    (source / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ValueError, match="names no known architecture"):
        load_model(source, dtype=torch.float32)


def test_damaged_weights_are_refused(tmp_path: Path):
    source = tiny_model(tmp_path / "m")
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match="does not load as a causal language model"):
        load_model(source, dtype=torch.float32)
