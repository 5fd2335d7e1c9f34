"""`distill.recursive` from its inputs to its outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from grafts.depth import keep_layers
from grafts.loader import load_model
from grafts.recursive.exits import exits
from stages.artifacts import Model, Report
from stages.distill.looping import exit_agreement
from stages.distill.recursive import DistillRecursive, RecursiveParameters
from stages.errors import UserError
from stages.stage import Context, Resources
from tests.distill.test_logits import QUICK, inputs  # noqa: F401, a fixture
from tests.grafts.families import tiny, tokens
from tests.tiny import tiny_model

STEP = 8 * 32
LOOPED = {"loops": 2, "rank": 4}


def loop(given: dict, directory: Path, *, workers: int = 1, **params) -> Context:
    stage = DistillRecursive(RecursiveParameters(**{**QUICK, **LOOPED, **params}))
    stage.preflight()
    stage.check(given)
    resources = Resources(workers=workers, cpus=0.5)
    context = Context(given, out=directory / "out", scratch=directory / "scratch", seed=1, resources=resources)
    stage.run(context)
    return context


def test_full_rank_begins_as_the_teacher_and_one_loop_stays_it(inputs: dict, tmp_path: Path):  # noqa: F811
    full = loop(inputs, tmp_path / "a", rank=999, tokens=1, learning_rate=1e-12).results
    assert full["initial_kl_to_parent"] < 1e-6
    assert full["kl_to_parent"] < 1e-6
    once = loop(inputs, tmp_path / "b", loops=1, tokens=1).results
    assert (once["initial_kl_to_parent"], once["kl_to_parent"], once["parameters_ratio"]) == (0, 0, 1)


def test_training_brings_the_teacher_back_and_ties_hold(inputs: dict, tmp_path: Path):  # noqa: F811
    found = loop(inputs, tmp_path, tokens=25 * STEP).results
    assert found["kl_to_parent"] < 0.5 * found["initial_kl_to_parent"]
    assert found["parameters_ratio"] < 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    first, second = (model.model.layers[layer].mlp.up_proj for layer in (0, 2))
    assert first.linear.weight is second.linear.weight
    assert not torch.equal(first.left, second.left)
    assert sum(p.numel() for p in model.parameters()) == found["parameters"]
    report = Report(tmp_path / "out/report").content
    assert report["details"]["graft"]["loops"] == 2
    assert Model(tmp_path / "out/model").tokenizer_fingerprint == inputs["teacher"].tokenizer_fingerprint


def test_sharing_work_out_changes_nothing(inputs: dict, tmp_path: Path):  # noqa: F811
    """A shared weight has one optimiser entry and one gradient under ZeRO as well."""
    found = [
        loop(inputs, tmp_path / str(stage), tokens=3 * STEP, zero_stage=stage, micro_batch=micro).results["loss"]
        for stage, micro in ((0, 8), (3, 2))
    ]
    assert found == pytest.approx([found[0]] * 2, rel=1e-4)


def test_exits_are_the_model_cut_short():
    model = tiny("gemma3_text")
    with torch.no_grad():
        output = model(tokens(), output_hidden_states=True, use_cache=False)
        early, last = exits(model, output, [2, 3])
        expected = keep_layers(model, [0, 1])(tokens()).logits
    torch.testing.assert_close(early, expected)
    assert torch.equal(last, output.logits)


def test_exits_learn_from_the_last_loop(inputs: dict, tmp_path: Path):  # noqa: F811
    untaught = loop(inputs, tmp_path / "a", tokens=16 * STEP).results
    taught = loop(inputs, tmp_path / "b", tokens=16 * STEP, exit_weight=1.0).results
    model = load_model(tmp_path / "a/out/model", dtype=torch.float32)
    from stages.data.windows import TokenWindows

    heldout = TokenWindows(inputs["heldout"], tmp_path / "windows").tensor()
    assert "exit_1_top1_agreement" not in untaught
    assert taught["exit_1_top1_agreement"] > exit_agreement(model, [2, 4], heldout, 4)[0]


def test_equal_work_gives_equal_bytes(inputs: dict, tmp_path: Path):  # noqa: F811
    files = []
    for name in ("a", "b"):
        loop(inputs, tmp_path / name, tokens=1, adapter="zero")
        root = tmp_path / name / "out"
        files.append({str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()})
    assert files[0] == files[1]


def test_what_nothing_reads_is_no_parameter():
    assert "depth_fraction" not in RecursiveParameters.model_fields


def test_weights_that_exits_or_sampling_read_are_never_shared_out():
    small = {"micro_batch": 1, "activation_checkpointing": True, "zero_stage": 2}
    assert RecursiveParameters(**small).smaller(2).zero_stage == 3
    assert RecursiveParameters(**small, exit_weight=0.1).smaller(2) is None
    assert RecursiveParameters(**small, on_policy_fraction=0.1).smaller(2) is None


def test_what_cannot_be_looped_is_refused_before_any_compute(inputs: dict, tmp_path: Path):  # noqa: F811
    def check(given: dict, **params) -> None:
        DistillRecursive(RecursiveParameters(**params)).check(given)

    with pytest.raises(UserError, match=r"the 4 layers .* do not divide into 3 loops: they do into 1, 2, 4"):
        check(inputs, loops=3)
    other = {**inputs, "teacher": Model(tiny_model(tmp_path / "other", vocab_size=400))}
    with pytest.raises(UserError, match="data: the tokens come from tokenizer"):
        check(other)
    loop(inputs, tmp_path / "looped", tokens=1)
    with pytest.raises(UserError, match=r"the teacher has grafts \(recursive\)"):
        check({**inputs, "teacher": Model(tmp_path / "looped/out/model")})
    (tmp_path / "neox").mkdir()
    (tmp_path / "neox/config.json").write_text('{"model_type": "gpt_neox", "num_hidden_layers": 4}')
    with pytest.raises(UserError, match="the layers of a gpt_neox are not known: supported are gemma3_text, llama"):
        check({**inputs, "teacher": Model(tmp_path / "neox")})
    with pytest.raises(ValidationError, match="zero_stage 3 shares out"):
        RecursiveParameters(exit_weight=0.1, zero_stage=3)
