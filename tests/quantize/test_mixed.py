"""`quantize.mixed`: the same bytes spent on more bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stages.artifacts import Dataset
from stages.quantize.mixed import MixedParams
from tests.quantize.runs import logits, quantize


def test_without_a_budget_it_is_the_base(tmp_path: Path, parent: Path, tokens: Dataset):
    ours, base = (quantize(name, parent, tmp_path, tokens, **more) for name, more in (("mixed", NONE), ("rtn", {})))
    weights = [each.output("model") / "model.safetensors" for each in (ours, base)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert ours.results["upgraded_share"] == ours.results["added_bytes"] == 0


NONE = {"added_bytes_ratio": 0.0}


def test_with_enough_for_all_it_is_the_base_in_more_bits(tmp_path: Path, parent: Path, tokens: Dataset):
    ours = quantize("mixed", parent, tmp_path, tokens, bits=3, added_bytes_ratio=1.0, base="gptq", sequential=False)
    base = quantize("gptq", parent, tmp_path, tokens, bits=4, sequential=False)
    assert ours.results["upgraded_share"] == 1
    found, expected = (load_file(each.output("model") / "model.safetensors") for each in (ours, base))
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert torch.equal(logits(ours.output("model")), logits(base.output("model")))
    assert ours.results["output_error"] == pytest.approx(base.results["output_error"])


@pytest.mark.parametrize("base", ["rtn", "gptq", "awq"])
def test_more_bytes_are_more_bits_and_less_error(tmp_path: Path, parent: Path, tokens: Dataset, base: str):
    ratios = (0.0, 0.3, 0.6)
    runs = [
        quantize("mixed", parent, tmp_path / str(ratio), tokens, base=base, added_bytes_ratio=ratio) for ratio in ratios
    ]
    errors = [run.results["output_error"] for run in runs]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] == runs[0].results["output_error_uncorrected"]
    for run, ratio in zip(runs, ratios, strict=True):
        assert run.results["added_bytes_ratio"] <= ratio
    upgraded = [
        set(json.loads((run.output("report") / "report.json").read_text())["details"]["upgraded"]) for run in runs
    ]
    assert set() == upgraded[0] < upgraded[1] < upgraded[2]
    out = runs[-1].output("model")
    assert torch.equal(logits(out, AutoModelForCausalLM.from_pretrained), logits(out))
    added = runs[-1].results["bytes_after"] - runs[0].results["bytes_after"]
    assert added == pytest.approx(runs[-1].results["added_bytes"], abs=3000), "but for the file's header"


def test_eight_bits_cannot_become_more():
    with pytest.raises(ValidationError, match="8 is the most there is"):
        MixedParams(bits=8)
