"""The stage from its inputs to its outputs, as the engine runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.artifacts import Dataset, Model, Report
from stages.distill.logits import DistillLogits, LogitsParameters
from stages.distill.recipe import Distillation
from stages.documentation import document
from stages.errors import UserError
from stages.stage import Context, Resources
from stages.training.order import global_batch
from stages.training.recipe import Worker
from tests.tiny import tiny_model, tokens_dataset

QUICK = {"batch_sequences": 8, "precision": "fp32", "learning_rate": 3e-3, "heldout_windows": 8}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A teacher with something to tell: a tiny model that a few updates have taught its text."""
    root = tmp_path_factory.mktemp("distill")
    path = tiny_model(root / "teacher", num_layers=4)
    data = tokens_dataset(root / "data", path, num_windows=64, sequence_length=32)
    heldout = tokens_dataset(root / "heldout", path, num_windows=8, sequence_length=32, seed=99)
    _teach(path, data, root)
    return {"teacher": Model(path), "data": data, "heldout": heldout}


def _teach(path: Path, data: Dataset, root: Path) -> None:
    from stages.data.windows import TokenWindows

    model, windows = AutoModelForCausalLM.from_pretrained(path), TokenWindows(data, root / "cache")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        ids = windows.stack(global_batch(step, 16, len(windows), seed=0))
        model(ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(path)


def distil(inputs: dict, directory: Path, *, workers: int = 1, **params) -> Context:
    stage = DistillLogits(LogitsParameters(**{**QUICK, **params}))
    stage.preflight()
    stage.check(inputs)
    resources = Resources(workers=workers, cpus=0.5)
    context = Context(inputs, out=directory / "out", scratch=directory / "scratch", seed=1, resources=resources)
    stage.run(context)
    return context


def test_the_whole_teacher_as_student_is_at_no_distance_and_stays_there(inputs: dict, tmp_path: Path):
    result = distil(inputs, tmp_path, depth_fraction=1, tokens=3 * 8 * 32).results
    assert result["loss"] == 0
    assert result["kl_to_parent"] == 0
    assert result["perplexity_ratio"] == 1
    assert result["top1_agreement"] == 1


def test_by_text_alone_the_teacher_neither_runs_nor_stays(inputs: dict, tmp_path: Path):
    params = LogitsParameters(kl_weight=0, ce_weight=0.5, depth_fraction=0.5)
    recipe = Distillation(inputs["teacher"], None, inputs["data"], None, params, tmp_path / "cache", tmp_path / "out")
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    assert recipe.live.teacher is None
    model, batch = recipe.build(), recipe.batch([0, 1, 2])
    ids = batch.tensors["ids_BT"].long()
    found, wanted = recipe.loss(model, batch), model(ids, labels=ids).loss * ids[:, 1:].numel()
    assert found.total.item() == pytest.approx(0.5 * wanted.item(), rel=1e-6)
    assert {name: value.item() for name, value in found.parts.items()} == {"ce": pytest.approx(wanted.item(), rel=1e-6)}
    beside = {"depth_fraction": 0.5, "tokens": 3 * 8 * 32, "ce_weight": 1}
    alone, watched = (distil(inputs, tmp_path / str(w), kl_weight=w, **beside).results for w in (0, 1e-30))
    for name in ("loss", "kl_to_parent", "child_perplexity"):
        assert alone[name] == pytest.approx(watched[name], rel=1e-5)


def test_distilling_improves_the_pruned_student(inputs: dict, tmp_path: Path):
    untrained = distil(inputs, tmp_path / "a", depth_fraction=0.5, tokens=1, learning_rate=1e-12).results
    trained = distil(inputs, tmp_path / "b", depth_fraction=0.5, tokens=40 * 8 * 32).results
    assert trained["kl_to_parent"] < 0.5 * untrained["kl_to_parent"]
    assert abs(trained["perplexity_ratio"] - 1) < abs(untrained["perplexity_ratio"] - 1)
    assert trained["top1_agreement"] > untrained["top1_agreement"]


def test_outputs_are_a_standard_model_with_its_tokenizer_and_a_report(inputs: dict, tmp_path: Path):
    context = distil(inputs, tmp_path, depth_fraction=0.5, tokens=1, precision="bf16", kl_weight=0.5, ce_weight=0.5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.config.num_hidden_layers, model.dtype) == (2, torch.bfloat16)
    assert Model(tmp_path / "out/model").tokenizer_fingerprint == inputs["teacher"].tokenizer_fingerprint
    assert AutoTokenizer.from_pretrained(tmp_path / "out/model").chat_template
    report = Report(tmp_path / "out/report").content
    assert report["metrics"].items() <= context.results.items()
    assert not {"tokens_per_second", "peak_memory_gib"} & report["metrics"].keys()
    assert report["details"]["parameters"]["depth_fraction"] == 0.5


def test_equal_work_gives_equal_bytes(inputs: dict, tmp_path: Path):
    def files(name: str) -> dict[str, bytes]:
        distil(inputs, tmp_path / name, tokens=2 * 8 * 32, precision="bf16")
        root = tmp_path / name / "out"
        return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}

    assert files("a") == files("b")


def test_a_given_student_learns(inputs: dict, tmp_path: Path):
    student = Model(tiny_model(tmp_path / "student", num_layers=1, hidden=16, seed=5))
    result = distil({**inputs, "student": student}, tmp_path, tokens=2 * 8 * 32)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").config.hidden_size == 16
    assert result.results["kl_to_parent"] > 0


def test_without_held_out_data_only_the_loss_is_told(inputs: dict, tmp_path: Path):
    given = {name: value for name, value in inputs.items() if name != "heldout"}
    assert distil(given, tmp_path, tokens=1).results.keys() == {"loss", "tokens_per_second", "peak_memory_gib"}


def test_held_out_figures_have_curves_while_training(inputs: dict, tmp_path: Path):
    events = []
    stage = DistillLogits(LogitsParameters(**QUICK, tokens=4 * 8 * 32, evaluate_every=2))
    stage.run(Context(inputs, out=tmp_path / "out", scratch=tmp_path / "scratch", emit=events.append))
    curves = [e for e in events if e["event"] == "curve"]
    assert [e["step"] for e in curves if "heldout_kl_to_parent" in e["values"]] == [2, 4]
    assert {"loss", "kl", "ce", "learning_rate", "grad_norm", "tokens_per_second"} <= curves[0]["values"].keys()


def test_only_the_first_worker_tells_how_far_an_evaluation_is(inputs: dict, tmp_path: Path):
    told = {}
    for rank in (0, 1):
        events: list[dict] = []
        recipe = Distillation.of(LogitsParameters(depth_fraction=1), Context(inputs, tmp_path / "out", tmp_path))
        recipe.prepare(Worker(rank, 2, torch.device("cpu"), torch.float32, events.append))
        assert recipe.evaluate(recipe.build())["heldout_kl_to_parent"] == 0
        told[rank] = bool(events)
    assert told == {0: True, 1: False}


def test_two_workers_distil_the_same_student(inputs: dict, tmp_path: Path, ray_cluster):
    one = distil(inputs, tmp_path / "one", tokens=3 * 8 * 32).results
    two = distil(inputs, tmp_path / "two", tokens=3 * 8 * 32, workers=2, zero_stage=3, micro_batch=2).results
    assert two["kl_to_parent"] == pytest.approx(one["kl_to_parent"], rel=1e-3)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def check(inputs: dict) -> None:
    DistillLogits(LogitsParameters()).check(inputs)


def with_card(data: Dataset, directory: Path, **changes) -> Dataset:
    directory.mkdir()
    dataclasses.replace(data.card, **changes).write(directory)
    return Dataset(directory)


def test_another_tokenizer_is_refused(inputs: dict, tmp_path: Path):
    data = with_card(inputs["data"], tmp_path / "d", tokenizer="0123456789abcdef")
    with pytest.raises(
        UserError, match=r"data: the tokens come from tokenizer 0123456789abcdef, the teacher has \w{16}"
    ):
        check({**inputs, "data": data})


def test_windows_beyond_the_context_are_refused(inputs: dict, tmp_path: Path):
    heldout = with_card(inputs["heldout"], tmp_path / "d", sequence_length=512)
    with pytest.raises(UserError, match=r"heldout: windows of 512 tokens exceed the teacher's context of 256"):
        check({**inputs, "heldout": heldout})


def test_data_that_is_not_packed_is_refused(inputs: dict, tmp_path: Path):
    with pytest.raises(UserError, match="sequence_length 0, expected packed tokens"):
        check({**inputs, "data": with_card(inputs["data"], tmp_path / "d", sequence_length=0)})


def test_a_student_of_another_vocabulary_is_refused(inputs: dict, tmp_path: Path):
    student = Model(tiny_model(tmp_path / "student", vocab_size=400))
    with pytest.raises(UserError, match="the teacher has 384 tokens in its vocabulary, the student 400"):
        check({**inputs, "student": student})


def test_a_teacher_of_one_layer_cannot_be_pruned(inputs: dict, tmp_path: Path):
    teacher = Model(tiny_model(tmp_path / "teacher", num_layers=1))
    with pytest.raises(UserError, match="num_hidden_layers 1, pruning by depth needs at least 2"):
        check({**inputs, "teacher": teacher})


def test_no_loss_at_all_is_refused():
    with pytest.raises(ValidationError, match="nothing would be learnt"):
        LogitsParameters(kl_weight=0, ce_weight=0)


def test_execution_parameters_stay_out_of_the_identity():
    identity = LogitsParameters().identity()
    assert {"tokens", "batch_sequences", "precision", "temperature", "heldout_windows"} <= identity.keys()
    execution = {"micro_batch", "zero_stage", "activation_checkpointing", "checkpoint_minutes", "evaluate_every"}
    assert not execution & identity.keys()
    document()
    fields = LogitsParameters.model_fields
    assert [name for name, value in fields.items() if not value.description] == []
