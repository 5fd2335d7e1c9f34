"""A corrected model taken apart, put together again by plain `transformers` and PEFT."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.quantize.export_adapter import QuantizeExportAdapter
from stages.stage import Context, Parameters
from tests.quantize.runs import IDS, SKIP_GATES, logits, quantize


def export(source: Path, out: Path) -> Context:
    stage, inputs = QuantizeExportAdapter(Parameters()), {"model": Model(source)}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / "export", scratch=out / "scratch")
    stage.run(context)
    assert set(context.results) == set(stage.metrics)
    return context


@pytest.mark.skipif(find_spec("peft") is None, reason="reading an adapter needs peft")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rank", [6, 40])  # k and v have 32 outputs: not all groups can have a rank of 40
def test_transformers_and_peft_compute_what_the_grafted_model_does(
    tmp_path: Path,
    parent: Path,
    tokens: Dataset,
    symmetric: bool,
    rank: int,
):
    from peft import PeftModel

    solver = "qera_exact" if rank == 40 else "glowq"
    corrected = quantize("glowq", parent, tmp_path, tokens, bits=3, symmetric=symmetric, rank=rank, solver=solver)
    out = export(corrected.output("model"), tmp_path).output("model")
    plain = quantize("rtn", parent, tmp_path, tokens, bits=3, symmetric=symmetric)
    base = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    assert torch.equal(base(input_ids=IDS).logits, logits(plain.output("model")))
    model = PeftModel.from_pretrained(base, out / "adapter", autocast_adapter_dtype=False)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, logits(corrected.output("model")))
    assert not torch.equal(logits(corrected.output("model")), logits(plain.output("model")))


def test_what_nobody_else_can_build_is_refused(
    tmp_path: Path,
    hybrid: Path,
    tokens: Dataset,
    parent: Path,
):
    with pytest.raises(UserError, match="has no grafts, expected quantised, lowrank"):
        export(parent, tmp_path)
    context = quantize("glowq", hybrid, tmp_path, tokens, skip=SKIP_GATES)
    with pytest.raises(UserError, match="the grafts hybrid_heads, quantised, lowrank, expected"):
        export(context.output("model"), tmp_path)
