"""FoldGPT: gates that are the model when open and deletion when closed, planted layers, sharing in groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from grafts.depth import keep_layers
from grafts.loader import save_model
from stages.artifacts import Model, Report
from stages.compress.fold import CompressFold, FoldParameters
from stages.compress.folding import Folding
from stages.compress.gates import Gates, gated, kept_layers, penalty
from stages.compress.prune import CompressPrune, PruneParameters
from stages.errors import StoppedError, UserError
from stages.stage import Context
from stages.training.recipe import Worker
from stages.upcycle.sparse import UpcycleSparse
from tests.compress.written import written_distance
from tests.distill.test_logits import QUICK, inputs  # noqa: F401, a fixture
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.tiny import tiny_model
from tests.upcycle.families import curve
from tests.upcycle.families import run as upcycle

STEP = 8 * 32
GRAFTED = {"model_type": "regraft", "grafts": [{"name": "recursive"}]}


@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_are_the_model_and_a_closed_one_deletes(family: str):
    model = tiny(family)
    with torch.no_grad():
        before = model(tokens()).logits
        with gated(model, torch.ones(3)):
            opened = model(tokens()).logits
        with gated(model, torch.tensor([1.0, 0.0, 1.0])):
            closed = model(tokens()).logits
        assert torch.equal(model(tokens()).logits, before), "hooks are gone"
        assert torch.equal(opened, before)
        assert torch.equal(closed, keep_layers(model, [0, 2])(tokens()).logits)


def test_gates_stay_between_the_ends_and_can_come_back():
    gates = Gates(5)
    assert torch.equal(gates(), torch.ones(5))
    optimiser = torch.optim.SGD(gates.parameters(), lr=1.0)
    for direction, expected in ((-1, 1.0), (0.25, 0.75), (5, 0.0), (5, 0.0), (-0.5, None)):
        optimiser.zero_grad()
        (direction * gates()[1:-1].sum()).backward()
        optimiser.step()
        if expected is not None:
            assert gates()[1:-1].tolist() == [expected] * 3
            assert gates()[0] == gates()[-1] == 1
    assert gates.inner.grad.abs().max() == 0.5, "from outside, the way back is open"


def test_the_penalty_is_least_at_decided_gates_of_the_right_share():
    decided, undecided = torch.tensor([1.0, 0, 1, 1]), torch.full((4,), 0.75)
    assert penalty(decided, 0.75, 1, 1) == 0
    assert penalty(undecided, 0.75, 1, 1).item() == pytest.approx(0.75 * 0.25)
    assert penalty(torch.ones(4), 0.75, 1, 2).item() == pytest.approx(2 * 0.0625)


def test_the_lowest_go_and_the_ends_stay():
    assert kept_layers([0.0, 0.9, 0.2, 0.5, 0.0], 4) == [0, 1, 3, 4]
    assert kept_layers([1.0, 0.5, 0.5, 1.0], 3) == [0, 1, 3]
    assert kept_layers([1.0, 1.0, 1.0], 2) == [0, 2]
    assert kept_layers([0.3, 0.7], 2) == [0, 1]
    assert [len(Gates(num_layers)()) for num_layers in (2, 3, 7)] == [2, 3, 7]


@pytest.fixture(scope="module")
def planted(inputs: dict, tmp_path_factory: pytest.TempPathFactory) -> dict:  # noqa: F811
    """The taught teacher with a layer in its middle that does nothing."""
    model = AutoModelForCausalLM.from_pretrained(inputs["teacher"].path)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    path = tmp_path_factory.mktemp("planted") / "model"
    model.save_pretrained(path)
    (path / "tokenizer.json").write_bytes((inputs["teacher"].path / "tokenizer.json").read_bytes())
    return {"model": Model(path), "data": inputs["data"], "heldout": inputs["heldout"]}


def fold(given: dict, directory: Path, stopping: Callable[[], bool] = lambda: False, **params) -> Context:
    stage = CompressFold(FoldParameters(**{**QUICK, "learning_rate": 0.05, "removed_fraction": 0.25, **params}))
    stage.preflight()
    stage.check(given)
    events: list[dict] = []
    context = Context(given, directory / "out", directory / "scratch", seed=1, emit=events.append, stopping=stopping)
    stage.run(context)
    context.events = events  # type: ignore[attr-defined]
    return context


def test_a_layer_that_does_nothing_goes_first(planted: dict, tmp_path: Path):
    found = fold(planted, tmp_path, tokens=25 * STEP).results
    details = Report(tmp_path / "out/report").content["details"]
    assert details["layers"] == [0, 1, 3]
    assert details["gates"][2] < details["gates"][1]
    assert found["kl_to_parent"] < 1e-6
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")).__name__ == "LlamaForCausalLM"


def test_nothing_removed_and_groups_of_one_is_the_model(planted: dict, tmp_path: Path):
    found = fold(planted, tmp_path, tokens=1, removed_fraction=0).results
    assert (found["kl_to_parent"], found["parameters_ratio"], found["layers"]) == (0, 1, 4)


def test_groups_share_storage_and_full_rank_is_exact(planted: dict, tmp_path: Path):
    exact = fold(planted, tmp_path / "a", tokens=1, removed_fraction=0, group=2, rank=999).results
    assert exact["kl_to_parent"] < 1e-6
    found = fold(planted, tmp_path / "b", tokens=1, removed_fraction=0, group=2).results
    assert found["parameters_ratio"] < 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b/out/model")
    layers = model.model.layers
    for first, second in ((0, 1), (2, 3)):
        assert layers[first].mlp.up_proj.weight is layers[second].mlp.up_proj.weight
        assert layers[first].input_layernorm.weight is not layers[second].input_layernorm.weight
    original = AutoModelForCausalLM.from_pretrained(planted["model"].path).model.layers
    assert torch.equal(layers[2].mlp.up_proj.weight, original[2].mlp.up_proj.weight)


@pytest.mark.usefixtures("bare_cpu")
def test_what_is_measured_is_what_was_written(planted: dict, tmp_path: Path):
    how = {"initialisation": "average", "rank": 2, "group": 3}
    found = fold(planted, tmp_path, precision="auto", tokens=4 * STEP, **how).results
    assert written_distance(planted["model"].path, tmp_path / "out/model", planted["heldout"], tmp_path) == {
        name: found[name] for name in ("kl_to_parent", "child_perplexity")
    }
    details = Report(tmp_path / "out/report").content["details"]
    assert details["computed_in"] == "float32"
    gates = torch.tensor(details["gates"])
    assert not torch.equal(gates.bfloat16().float(), gates), "gates are not written as weights, nor rounded like them"


def test_gates_are_float32_beside_a_model_in_bfloat16(planted: dict, tmp_path: Path):
    found = fold(planted, tmp_path, precision="bf16", tokens=4 * STEP).results
    details = Report(tmp_path / "out/report").content["details"]
    assert details["computed_in"] == "bfloat16"
    trained = torch.tensor(details["gates"])[1:-1]
    assert (trained.bfloat16().float() != trained).all()
    assert found["gates_decided"] == 0, "the constant gates of the first and the last layer are not decided"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").dtype == torch.bfloat16


def test_gates_do_not_go_on_beside_a_model_in_another_arithmetic(planted: dict, tmp_path: Path):
    asked = iter([False, True])
    with pytest.raises(StoppedError):
        fold(planted, tmp_path / "a", stopping=lambda: next(asked), precision="bf16", tokens=4 * STEP)
    for name in ("a", "b"):
        fold(planted, tmp_path / name, tokens=4 * STEP)
    mixed, whole = (Report(tmp_path / name / "out/report").content["details"]["gates"] for name in ("a", "b"))
    assert mixed == whole


def test_gates_are_driven_apart_ever_harder(planted: dict, tmp_path: Path):
    params = FoldParameters(**{**QUICK, "tokens": 5 * STEP, "polarisation": 2.0})
    recipe = Folding.of(params, Context(planted, tmp_path / "out", tmp_path / "scratch"), torch.float32)
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    assert [recipe._polarisation(SimpleNamespace(global_steps=step)) for step in range(6)] == [0, 0.5, 1, 1.5, 2, 2]


def test_what_cannot_be_folded_is_refused(planted: dict, tmp_path: Path):
    with pytest.raises(UserError, match="3 of 4 layers stay, which do not divide into groups of 2"):
        CompressFold(FoldParameters(removed_fraction=0.25, group=2)).check(planted)
    with pytest.raises(UserError, match=r"divide into groups of 9\nfix: set a group of 4 or less"):
        CompressFold(FoldParameters(removed_fraction=0.25, group=9)).check(planted)
    shallow = {**planted, "model": Model(tiny_model(tmp_path, num_layers=1))}
    for extra, what in (({"quantization_config": {}}, "is quantised"), (GRAFTED, r"has grafts \(recursive\)")):
        config = tmp_path / next(iter(extra)) / "config.json"
        config.parent.mkdir()
        config.write_text(json.dumps({**planted["model"].config, **extra}))
        for stage in (CompressFold(FoldParameters()), CompressPrune(PruneParameters(method="magnitude"))):
            with pytest.raises(UserError, match=f"^the model {what}: its l"):
                stage.check({**planted, "model": Model(config.parent)})
    with pytest.raises(UserError, match="the model has 1 layer, nothing can be dropped"):
        CompressFold(FoldParameters()).check(shallow)


def test_the_held_out_loss_through_the_gates_has_a_curve(planted: dict, tmp_path: Path):
    context = fold(planted, tmp_path, tokens=4 * STEP, evaluate_every=2)
    losses = [curve(context, f"heldout_{name}") for name in ("loss", "ce", "gates")]
    assert [len(values) for values in losses] == [2, 2, 2]
    assert losses[0] == pytest.approx([ce + cost for ce, cost in zip(*losses[1:], strict=True)])


def test_less_memory_halves_the_micro_batch_and_nothing_else():
    params = FoldParameters(micro_batch=2).smaller(workers=2)
    assert params == FoldParameters(micro_batch=1)
    assert params.smaller(workers=2) is None
    with pytest.raises(ValidationError, match="activation_checkpointing: only gates train"):
        FoldParameters(activation_checkpointing=True)


def test_layers_that_cannot_share_are_refused_before_gates_are_trained(planted: dict, tmp_path: Path):
    save_model(tiny("gemma3_text"), tmp_path / "gemma", tokenizer_from=planted["model"].path)
    mixed = {**planted, "model": Model(tmp_path / "gemma")}
    with pytest.raises(UserError, match="several kinds, full_attention and sliding_attention"):
        CompressFold(FoldParameters(removed_fraction=0, group=3)).check(mixed)
    CompressFold(FoldParameters(removed_fraction=0)).check({"model": mixed["model"]})
    upcycle(UpcycleSparse, {"model": planted["model"]}, tmp_path / "sparse", num_experts=2)
    with pytest.raises(UserError, match="layers of a mixtral are not known: supported are gemma3_text, llama"):
        CompressFold(FoldParameters()).check({**planted, "model": Model(tmp_path / "sparse/out/model")})


def test_what_the_graft_refuses_is_told_with_a_fix(planted: dict, tmp_path: Path):
    recipe = Folding.of(
        FoldParameters(group=3), Context(planted, tmp_path / "out", tmp_path / "scratch"), torch.float32
    )
    with pytest.raises(UserError, match=r"cannot share weights: layers 0 and 1[\s\S]*fix: set `group: 1`"):
        recipe._shared(tiny("gemma3_text"))
