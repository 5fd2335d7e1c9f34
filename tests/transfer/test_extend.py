"""Stage 3 of hybrid transfer: plain training on long windows, measured against the model it began with."""

import math
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from stages.artifacts import Model
from stages.errors import UserError
from stages.stage import Context, Resources
from stages.transfer.distill import TransferDistill, TransferDistillParams
from stages.transfer.extend import ExtendParameters, TransferExtend
from tests.tiny import tiny_model, tokens_dataset

QUICK = {"batch_sequences": 4, "precision": "fp32", "heldout_windows": 8}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("extend")
    path = tiny_model(root / "model")
    data = tokens_dataset(root / "data", path, num_windows=32, sequence_length=64)
    return {"model": Model(path), "data": data, "heldout": tokens_dataset(root / "held", path, num_windows=8, seed=9)}


def extend(inputs: dict, directory: Path, **params) -> Context:
    stage = TransferExtend(ExtendParameters(**{**QUICK, **params}))
    stage.preflight()
    stage.check(inputs)
    context = Context(inputs, out=directory / "out", scratch=directory / "scratch", resources=Resources())
    stage.run(context)
    return context


def test_hardly_any_training_hardly_moves_the_model(inputs, tmp_path):
    found = extend(inputs, tmp_path, tokens=1, learning_rate=1e-12).results
    assert found["kl_to_parent"] < 1e-9
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-6)


def test_training_learns_the_text_and_reports_how_far_it_went(inputs, tmp_path):
    found = extend(inputs, tmp_path, tokens=40 * 4 * 64, learning_rate=1e-2).results
    assert found["perplexity_ratio"] < 0.5
    assert found["kl_to_parent"] > 0.1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").config.model_type == "llama"


def test_the_distance_is_to_the_teacher_when_there_is_one(inputs, tmp_path):
    teacher = Model(tiny_model(tmp_path / "teacher", seed=5))
    found = extend({**inputs, "teacher": teacher}, tmp_path, tokens=1, learning_rate=1e-12).results
    assert found["kl_to_parent"] > 1e-4, "the model itself has not moved, the teacher is another model"


def test_the_held_out_loss_has_a_curve_while_training(inputs, tmp_path):
    events = []
    stage = TransferExtend(ExtendParameters(**QUICK, tokens=5 * 4 * 64, learning_rate=1e-2, evaluate_every=2))
    context = Context(inputs, out=tmp_path / "out", scratch=tmp_path / "scratch", emit=events.append)
    stage.run(context)
    assert [event["step"] for event in heldout_curves(events)] == [2, 4]
    events.clear()
    stage = TransferExtend(stage.params.replaced(evaluate_every=5))
    context = Context(inputs, out=tmp_path / "again", scratch=tmp_path / "again", emit=events.append)
    stage.run(context)
    [last] = heldout_curves(events)
    assert math.exp(last["values"]["heldout_loss"]) == pytest.approx(context.results["child_perplexity"], rel=1e-4)


def heldout_curves(events: list[dict]) -> list[dict]:
    return [event for event in events if event["event"] == "curve" and "heldout_loss" in event["values"]]


def test_windows_longer_than_the_context_are_refused(inputs, tmp_path):
    short = Model(tiny_model(tmp_path / "short", max_positions=32))
    with pytest.raises(UserError, match="windows of 64 tokens exceed the model's context of 32"):
        extend({**inputs, "model": short}, tmp_path)


def test_distilling_needs_a_student_and_has_the_recipe_s_rate():
    assert TransferDistillParams().learning_rate == 1e-4
    assert not TransferDistill.inputs["student"].optional
