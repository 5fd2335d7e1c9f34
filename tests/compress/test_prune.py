"""Pruning against loops over weights, and PERP: what was pruned stays pruned, merging changes nothing it should not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForCausalLM

from grafts.loader import load_model
from stages.artifacts import Model, Report
from stages.compress.adapted import AdaptedLinear, MaskedLinear, adapt, merge
from stages.compress.masks import load_masks, magnitude, save_masks, structured, unstructured, wanda
from stages.compress.perp import CompressPerp, PerpParameters
from stages.compress.prune import CompressPrune, PruneParameters
from stages.compress.pruning import decoder_linears, input_norms
from stages.compress.reconstruction import Reconstruction
from stages.compress.retraining import Retraining, require_pruned
from stages.errors import StageError, UserError
from stages.stage import Context
from stages.training.recipe import Worker
from stages.upcycle.sparse import UpcycleSparse
from tests.compress.written import written_distance
from tests.distill.test_logits import QUICK, inputs  # noqa: F401, a fixture
from tests.grafts.families import tiny, tokens
from tests.tiny import tiny_model
from tests.upcycle.families import run as upcycle

STEP = 8 * 32
ADAPTERS = ["mask_lora", "scale_lora", "lora_prune"]


def random(rows: int = 6, columns: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_the_lowest_scores_go_and_as_many_as_asked_for():
    scores = magnitude(random())
    by_row, whole = unstructured(scores, 0.5, by_row=True), unstructured(scores, 0.5, by_row=False)
    for row, kept in zip(scores, by_row, strict=True):
        assert kept.sum() == 4
        assert row[kept].min() >= row[~kept].max()
    assert whole.sum() == 24
    assert scores[whole].min() >= scores[~whole].max()
    assert unstructured(torch.zeros(3, 4), 0.5, by_row=True).sum() == 6, "ties count too"
    assert unstructured(scores, 0, by_row=False).all()


def test_n_of_every_m_stay():
    scores = magnitude(random())
    kept = structured(scores, 2, 4)
    for group, mask in zip(scores.reshape(-1, 4), kept.reshape(-1, 4), strict=True):
        assert sorted(group[mask].tolist()) == sorted(group.tolist())[2:]
    with pytest.raises(ValueError, match="rows of 6 weights do not divide into groups of 4"):
        structured(random(4, 6), 2, 4)


def test_wanda_weighs_by_the_input_and_norms_are_those_of_the_linear():
    weight = random()
    assert torch.equal(wanda(weight, torch.ones(8)), magnitude(weight))
    kept = unstructured(wanda(weight, torch.tensor([9.0, 9, 9, 9, 0, 0, 0, 0])), 0.5, by_row=True)
    assert torch.equal(kept, torch.arange(8).expand(6, 8) < 4)
    model, found = tiny(), {}
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _module, x: found.update(x=x[0]))
    norms = input_norms(model, list(tokens().split(1)))
    with torch.no_grad():
        model(tokens())
    expected = found["x"].flatten(0, 1).norm(dim=0)
    torch.testing.assert_close(norms["model.layers.1.mlp.down_proj"], expected, rtol=1e-4, atol=1e-5)
    assert "lm_head" not in norms


def test_masks_are_stored_to_the_bit(tmp_path: Path):
    masks = {"a": random(3, 5) > 0, "b.c": random(7, 9, seed=1) > 0.5}
    save_masks(masks, tmp_path)
    read = load_masks(tmp_path)
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[name], masks[name]) for name in masks)
    with pytest.raises(UserError, match="does not say which weights were pruned"):
        load_masks(tmp_path / "other")


def adapted(kind: str, rank: int = 2) -> AdaptedLinear:
    linear, mask = nn.Linear(8, 6), random(seed=2) > 0
    linear.weight.data.masked_fill_(~mask, 0)
    return AdaptedLinear(linear, mask, kind, rank, 2.0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_starts_as_the_identity(kind: str):
    module, x = adapted(kind), random(3, seed=5)
    torch.testing.assert_close(module(x), module.linear(x))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_merging_is_exact_where_it_should_be_and_keeps_zeros(kind: str):
    module, x = adapted(kind), random(3, seed=5)
    with torch.no_grad():
        for number, parameter in enumerate((module.left, module.right)):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        trained, mask = module(x), module.mask
        merged = module.merged()
    assert merged.weight[~mask].count_nonzero() == 0
    assert merged.weight[mask].count_nonzero() == mask.sum()
    same = torch.allclose(merged(x), trained, atol=1e-5)
    assert same == (kind != "lora_prune"), "plain LoRA loses what it learnt where weights were pruned"


def test_where_all_that_stayed_trains_what_went_stays_zero():
    linear, mask, x = nn.Linear(8, 6), random(seed=2) > 0, random(3, seed=5)
    linear.weight.data.masked_fill_(~mask, 0)
    before = linear(x).detach()
    module = MaskedLinear(linear, mask)
    torch.testing.assert_close(module(x), before)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    trained, merged = module(x).detach(), module.merged()
    assert merged.weight[~mask].count_nonzero() == 0
    torch.testing.assert_close(merged(x), trained)
    assert not torch.allclose(trained, before)


def test_full_rank_and_no_sparsity_can_become_any_weight():
    whole, draw = torch.ones(6, 8, dtype=torch.bool), torch.Generator().manual_seed(0)
    module = AdaptedLinear(nn.Linear(8, 6), whole, "mask_lora", 8, 1.0, draw)
    target = random(seed=9)
    with torch.no_grad():
        module.left.copy_((target - module.linear.weight) @ torch.linalg.pinv(module.right))
        torch.testing.assert_close(module.merged().weight, target, rtol=1e-3, atol=1e-3)


def test_adapters_are_drawn_by_the_seed_of_the_stage(pruned: dict, tmp_path: Path):
    def drawn(seed: int) -> list[torch.Tensor]:
        recipe = Retraining.of(PerpParameters(rank=2), Context(pruned, tmp_path, tmp_path, seed=seed))
        recipe._worker = Worker(0, 1, torch.device("cpu"), torch.float32)
        return [each.right.data for each in recipe.build().modules() if isinstance(each, AdaptedLinear)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one in first for two in other)


def test_what_is_not_zero_is_noticed():
    linear = nn.Linear(8, 6)
    with pytest.raises(StageError, match="pruned weights of x are not zero"):
        require_pruned({"x": linear}, {"x": random() > 0})


def test_a_model_is_adapted_and_merged_in_place():
    model = tiny("qwen3")
    with torch.no_grad():
        before = model(tokens()).logits
    names = set(model.state_dict())
    masks = {name: torch.ones_like(linear.weight, dtype=torch.bool) for name, linear in decoder_linears(model).items()}
    adapt(model, masks, "mask_lora", 2, 2.0, seed=0)
    assert sum(isinstance(module, AdaptedLinear) for module in model.modules()) == 21
    merge(model)
    assert set(model.state_dict()) == names
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, before)


def prune(given: dict, directory: Path, **params) -> Context:
    stage = CompressPrune(PruneParameters(**params))
    stage.check(given)
    context = Context(given, out=directory / "out", scratch=directory / "scratch")
    stage.run(context)
    return context


def perp(given: dict, directory: Path, emit=lambda _: None, **params) -> dict[str, float]:
    stage = CompressPerp(PerpParameters(**{**QUICK, "rank": 4, **params}))
    stage.preflight()
    stage.check(given)
    context = Context(given, out=directory / "out", scratch=directory / "scratch", seed=1, emit=emit)
    stage.run(context)
    return context.results


@pytest.fixture(scope="module")
def pruned(inputs: dict, tmp_path_factory: pytest.TempPathFactory) -> dict:  # noqa: F811
    root = tmp_path_factory.mktemp("pruned")
    given = {"model": inputs["teacher"], "data": inputs["data"], "heldout": inputs["heldout"]}
    context = prune(given, root, sparsity=0.6)
    return {
        **given,
        "parent": given["model"],
        "model": Model(root / "out/model"),
        "kl": context.results["kl_to_parent"],
    }


@pytest.mark.parametrize(
    ("params", "sparsity"),
    [({}, 0.5), ({"method": "magnitude", "sparsity": 0.25}, 0.25), ({"pattern": (1, 4)}, 0.75), ({"sparsity": 0}, 0)],
)
def test_the_stage_prunes_as_much_as_asked_for(inputs: dict, tmp_path: Path, params: dict, sparsity: float):  # noqa: F811
    given = {"model": inputs["teacher"], "data": inputs["data"], "heldout": inputs["heldout"]}
    found = prune(given, tmp_path, **params).results
    assert found["sparsity"] == pytest.approx(sparsity, abs=0.01)
    assert (found["kl_to_parent"] == 0) == (sparsity == 0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    masks = load_masks(tmp_path / "out/model")
    assert require_pruned(decoder_linears(model), masks) == found["sparsity"]
    assert len(Report(tmp_path / "out/report").content["details"]["sparsity"]) == len(masks) == 28


def test_wanda_loses_less_than_magnitude_where_inputs_are_uneven():
    weight, inputs_NI = random(32, 64), random(200, 64, seed=3) * torch.logspace(-2, 2, 64)
    scores = {"wanda": wanda(weight, inputs_NI.norm(dim=0)), "magnitude": magnitude(weight)}
    errors = {
        name: (inputs_NI @ (weight * ~unstructured(score, 0.5, by_row=True)).T).norm() for name, score in scores.items()
    }
    assert errors["wanda"] < 0.2 * errors["magnitude"]


@pytest.mark.parametrize("adapter", ["none", "full", *ADAPTERS])
def test_retraining_recovers_and_keeps_every_zero(pruned: dict, tmp_path: Path, adapter: str):
    found = perp(pruned, tmp_path, adapter=adapter, tokens=12 * STEP)
    assert found["kl_to_parent"] < pruned["kl"]
    masks = [load_masks(path) for path in (pruned["model"].path, tmp_path / "out/model")]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    model = load_model(tmp_path / "out/model", dtype=torch.float32)
    assert require_pruned(decoder_linears(model), masks[0]) == found["sparsity"]
    assert found["trained_share"] < {"none": 0.05, "full": 1}.get(adapter, 0.6)
    if adapter == "full":
        vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
        assert found["trained_parameters"] == vectors + sum(mask.sum().item() for mask in masks[0].values())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_layers_are_rebuilt_one_by_one(pruned: dict, tmp_path: Path, adapter: str):
    found = perp(pruned, tmp_path, adapter=adapter, objective="layers", tokens=12 * STEP)
    assert found["layer_error"] < found["initial_layer_error"] < 1
    assert found["kl_to_parent"] < pruned["kl"]
    model = load_model(tmp_path / "out/model", dtype=torch.float32)
    assert require_pruned(decoder_linears(model), load_masks(pruned["model"].path)) == found["sparsity"]
    written = {**pruned, "model": Model(tmp_path / "out/model")}
    assert found["layer_error"] == pytest.approx(layer_error(written, tmp_path / "again"), rel=1e-5)


def layer_error(given: dict, directory: Path) -> float:
    """Of the linears of a model as it lies on disk, on the held-out text."""
    recipe = Reconstruction.of(PerpParameters(objective="layers", **QUICK), Context(given, directory, directory))
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    return recipe._errors(recipe.build(), recipe._held).mean().item()


@pytest.mark.usefixtures("bare_cpu")
@pytest.mark.parametrize("objective", ["text", "layers"])
def test_what_is_measured_is_what_was_written(pruned: dict, tmp_path: Path, objective: str):
    found = perp(pruned, tmp_path, precision="auto", objective=objective, tokens=2 * STEP)
    assert written_distance(pruned["parent"].path, tmp_path / "out/model", pruned["heldout"], tmp_path) == {
        name: found[name] for name in ("kl_to_parent", "child_perplexity")
    }


def test_the_error_of_a_layer_is_what_it_says(pruned: dict, tmp_path: Path):
    recipe = Reconstruction.of(PerpParameters(rank=2, objective="layers"), Context(pruned, tmp_path, tmp_path))
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    module, name = recipe.build(), "model.layers.1.mlp.up_proj"
    ids, inputs_of = recipe.windows.stack([0, 1]), {}
    recipe.dense.get_submodule(name).register_forward_pre_hook(lambda _module, x: inputs_of.update(x=x[0]))
    with torch.no_grad():
        found = module(recipe.dense, ids)[module.names.index(name)]
    x = inputs_of["x"]
    weights = [
        load_model(pruned[role].path, dtype=torch.float32).get_submodule(name).weight for role in ("parent", "model")
    ]
    gaps = [(x @ (weights[0] - weights[1]).T).square().sum(-1), (x @ weights[0].T).square().sum(-1)]
    torch.testing.assert_close(found, (gaps[0] / gaps[1]).sum())


@pytest.mark.parametrize("objective", ["text", "layers"])
def test_the_held_out_loss_has_a_curve_while_retraining(pruned: dict, tmp_path: Path, objective: str):
    events: list[dict] = []
    perp(pruned, tmp_path, events.append, objective=objective, tokens=4 * STEP, evaluate_every=2)
    curves = [event["values"] for event in events if event["event"] == "curve"]
    losses = [values["heldout_loss"] for values in curves if "heldout_loss" in values]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_what_did_not_help_is_put_back(pruned: dict, tmp_path: Path):
    found = perp(pruned, tmp_path, objective="layers", tokens=2 * STEP, learning_rate=1.0, warmup_fraction=0)
    linears = decoder_linears(load_model(tmp_path / "out/model", dtype=torch.float32)).values()
    adapters = sum(sum(linear.weight.shape) * 4 for linear in linears)
    assert found["trained_parameters"] == adapters
    assert found["layer_error"] <= found["initial_layer_error"]
    assert found["kl_to_parent"] < 3 * pruned["kl"]


def test_only_what_is_asked_for_trains(pruned: dict, tmp_path: Path):
    def trainable(**params) -> set[str]:
        recipe = Retraining.of(PerpParameters(rank=2, precision="fp32", **params), Context(pruned, tmp_path, tmp_path))
        recipe._worker = type("W", (), {"dtype": torch.float32})()
        return {name.split(".")[-1] for name, p in recipe.build().named_parameters() if p.requires_grad}

    assert trainable(adapter="none") == {"weight"}, "of norms"
    assert trainable() == {"weight", "left", "right"}
    assert trainable(vectors=False) == {"left", "right"}


def test_less_memory_never_asks_linears_to_recompute():
    assert PerpParameters(micro_batch=1).smaller(workers=1).activation_checkpointing
    params = PerpParameters(objective="layers", micro_batch=2).smaller(workers=2)
    assert (params.micro_batch, params.zero_stage) == (1, 0)
    assert params.smaller(workers=1) is None
    assert params.smaller(workers=2).zero_stage == 1
    assert not params.smaller(workers=2).activation_checkpointing
    with pytest.raises(ValidationError, match="activation_checkpointing: layers are fitted one by one"):
        PerpParameters(objective="layers", activation_checkpointing=True)


def test_what_cannot_be_pruned_or_retrained_is_refused(inputs: dict, pruned: dict, tmp_path: Path):  # noqa: F811
    with pytest.raises(UserError, match="measures the inputs of linears on text, and there is none"):
        CompressPrune(PruneParameters()).check({"model": inputs["teacher"]})
    mixture = tmp_path / "mixture"
    upcycle(UpcycleSparse, {"model": inputs["teacher"]}, mixture, num_experts=3)
    with pytest.raises(UserError, match="its 3 experts a layer are no linears"):
        CompressPrune(PruneParameters(method="magnitude")).check({"model": Model(mixture / "out/model")})
    with pytest.raises(UserError, match="do not divide into groups of 7"):
        prune({"model": inputs["teacher"]}, tmp_path, method="magnitude", pattern=(2, 7))
    with pytest.raises(ValidationError, match="keeps all of every 4"):
        PruneParameters(pattern=(4, 4))
    with pytest.raises(ValidationError, match="leave nothing to train"):
        PerpParameters(vectors=False, adapter="none")
    with pytest.raises(UserError, match="does not say which weights were pruned"):
        CompressPerp(PerpParameters()).check({**pruned, "model": inputs["teacher"]})
    other = Model(tiny_model(tmp_path / "other", vocab_size=400))
    alone = {name: value for name, value in pruned.items() if name != "parent"}
    with pytest.raises(UserError, match="that model is not given"):
        CompressPerp(PerpParameters(objective="layers")).check(alone)
    with pytest.raises(UserError, match="the parent has 400 tokens in its vocabulary, the model 384"):
        CompressPerp(PerpParameters()).check({**pruned, "parent": other})
    deeper = {**pruned, "parent": Model(tiny_model(tmp_path / "deeper", num_layers=5))}
    with pytest.raises(UserError, match="it has num_hidden_layers 5, the pruned model 4"):
        CompressPerp(PerpParameters(objective="layers")).check(deeper)
    CompressPerp(PerpParameters()).check(deeper)
    config = tmp_path / "fewer/config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({**pruned["model"].config, "num_key_value_heads": 1}))
    fewer = {**pruned, "parent": Model(config.parent)}
    with pytest.raises(UserError, match="it has num_key_value_heads 1, the pruned model 2"):
        CompressPerp(PerpParameters(objective="layers")).check(fewer)
