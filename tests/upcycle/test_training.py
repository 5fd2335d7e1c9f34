"""Branching with replay, and training a mixture: shares, losses, what the routers are seen doing, the heat map."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from grafts.experts.routing import balance_loss, z_loss
from grafts.loader import load_model
from stages.artifacts import Model
from stages.errors import UserError
from stages.stage import Context, Resources
from stages.training.cross_entropy import naive
from stages.training.recipe import Worker
from stages.upcycle.bam import UpcycleBam
from stages.upcycle.blend import Blended, epoch_counts
from stages.upcycle.branch import UpcycleBranch
from stages.upcycle.loads import measure_loads
from stages.upcycle.mix import MixParameters, UpcycleMix, load_figures
from stages.upcycle.mixture import MixtureTraining
from stages.upcycle.routing import experts_per_token
from stages.upcycle.sparse import UpcycleSparse
from tests.tiny import tokens_dataset
from tests.upcycle.families import curve, family, run

QUICK = {"precision": "fp32", "batch_sequences": 4, "tokens": 4 * 4 * 32, "heldout_windows": 4}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    found = family(root)
    seed = found["seed"].path
    found["data"] = [tokens_dataset(root / f"data-{i}", seed, num_windows=12, seed=10 + i) for i in range(2)]
    run(UpcycleBam, {name: found[name] for name in ("seed", "experts")}, root / "bam")
    run(UpcycleSparse, {"model": found["seed"]}, root / "sparse", num_experts=3)
    run(UpcycleSparse, {"model": found["seed"]}, root / "tight", num_experts=3, capacity=0.8)
    found |= {name: Model(root / name / "out/model") for name in ("bam", "sparse", "tight")}
    return found


def blended(given, tmp_path, shares, **sizes) -> Blended:
    seed = given["seed"]
    first, second = (
        tokens_dataset(tmp_path / name, seed.path, num_windows=count, seed=index)
        for index, (name, count) in enumerate(sizes.items())
    )
    recipe = Blended(
        model=seed,
        data=first,
        heldout=None,
        heldout_windows=1,
        measure_batch=1,
        parent=seed,
        cache=tmp_path / "cache",
        out=tmp_path / "out",
        more=[second],
        shares=shares,
    )
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    return recipe


@pytest.mark.parametrize("num_old", [3, 90])
def test_an_epoch_has_all_new_windows_once_and_the_share_of_old_ones(given, tmp_path, num_old):
    recipe = blended(given, tmp_path, (0.9, 0.1), new=45, old=num_old)
    assert recipe.num_samples == 50
    windows = [tuple(recipe.batch([index]).tensors["ids_BT"][0].tolist()) for index in range(50)]
    new = {tuple(window.tolist()) for window in recipe.windows.tensor()}
    seen = Counter(window for window in windows if window in new)
    assert len(seen) == 45 == sum(seen.values())
    old = Counter(window for window in windows if window not in new)
    assert sum(old.values()) == 5
    assert len(old) == min(num_old, 5), "spread over many, repeated where there are few"
    assert recipe.batch([0, 49]).num_targets == 2 * 31
    with pytest.raises(IndexError, match="50 windows"):
        recipe.batch([50])


def test_shares_of_an_epoch():
    assert epoch_counts(90, (0.9, 0.1)) == [90, 10]
    assert epoch_counts(7, (1.0,)) == [7]
    assert epoch_counts(8, (1 / 3, 1 / 3, 1 / 3)) == [8, 8, 8]


def test_a_branch_learns_its_domain(given, tmp_path):
    inputs = {"model": given["seed"], "data": given["data"][0], "replay": given["data"][1], "heldout": given["heldout"]}
    found = run(UpcycleBranch, inputs, tmp_path, **{**QUICK, "tokens": 30 * 4 * 32}, learning_rate=1e-2).results
    assert found["perplexity_ratio"] < 0.8
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").config.model_type == "llama"
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert report["details"]["replayed"] is True


def test_the_recipe_s_defaults_are_the_paper_s():
    params = UpcycleBranch.Params()
    assert (params.replay_share, params.learning_rate, params.weight_decay) == (0.1, 6e-5, 0.1)


def test_replay_of_another_length_is_refused(given, tmp_path):
    other = tokens_dataset(tmp_path / "other", given["seed"].path, sequence_length=16)
    inputs = {"model": given["seed"], "data": given["data"][0], "replay": other}
    with pytest.raises(UserError, match="data has windows of 32 tokens, replay of 16"):
        run(UpcycleBranch, inputs, tmp_path)


@pytest.mark.parametrize("name", ["bam", "sparse", "tight"])
def test_a_mixture_trains_and_tells_what_its_routers_do(given, tmp_path, name):
    inputs = {"model": given[name], **{key: given[key] for key in ("data", "heldout", "domains")}}
    weights = {"balance_weight": 0.05, "z_weight": 2e-3}
    context = run(UpcycleMix, {**inputs, "parent": given["seed"]}, tmp_path, **QUICK, **weights, learning_rate=5e-3)
    losses = curve(context, "loss")
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    for step in range(4):
        parts = {part: curve(context, part)[step] for part in ("ce", "balance", "z", "load_max", "load_min")}
        assert losses[step] == pytest.approx(parts["ce"] + 0.05 * parts["balance"] + 2e-3 * parts["z"], rel=1e-5)
        assert parts["load_min"] <= 1 / 3 <= parts["load_max"] <= 1
        assert 0 < curve(context, "router_entropy")[step] <= math.log(3) + 1e-6
    assert len(curve(context, "attention_entropy")) == (4 if name == "bam" else 0)
    dropped = curve(context, "dropped_share")
    assert len(dropped) == (4 if name == "tight" else 0)
    assert all(0 < share < 1 for share in dropped)
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    domains = report["details"]["domains"]
    assert [each["name"] for each in domains] == ["a", "b"]
    for each in domains:
        assert all(sum(row) == pytest.approx(1) for row in (*each["feed_forward"], *each["attention"]))
        assert len(each["feed_forward"]) == 2
    figure = (tmp_path / "out/report/token-domains-by-expert.svg").read_text()
    assert figure.count("experts") >= 1
    assert context.results["kl_to_parent"] > 0
    assert 0 <= context.results["specialisation"] < 0.5
    model = load_model(tmp_path / "out/model", dtype=torch.float32)
    assert type(model).__name__ == ("MixtralForCausalLM" if name == "sparse" else "GraftedLlamaForCausalLM")
    if name == "sparse":
        assert model.config.router_aux_loss_coef == 0.05 / 2
    else:
        assert {field: getattr(model.config.grafts[0], field) for field in weights} == weights


def test_held_out_losses_have_curves_while_training(given, tmp_path):
    inputs = {"model": given["bam"], "data": given["data"], "heldout": given["heldout"], "parent": given["seed"]}
    context = run(UpcycleMix, inputs, tmp_path, **QUICK, evaluate_every=4, learning_rate=5e-3)
    found = {name: curve(context, f"heldout_{name}") for name in ("loss", "ce", "balance", "z", "load_max")}
    assert all(len(values) == 1 for values in found.values())
    assert math.exp(found["ce"][0]) == pytest.approx(context.results["child_perplexity"], rel=1e-4)
    expected = found["ce"][0] + 1e-2 * found["balance"][0] + 1e-3 * found["z"][0]
    assert found["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_what_is_shared_out_and_recomputed_changes_nothing(given, tmp_path):
    inputs, losses = {"model": given["bam"], "data": given["data"]}, []
    for name, options in {"plain": {}, "lean": {"zero_stage": 3, "activation_checkpointing": True}}.items():
        losses.append(curve(run(UpcycleMix, inputs, tmp_path / name, **QUICK, **options, learning_rate=5e-3), "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_is_that_of_the_text_and_of_the_routers(given, tmp_path):
    recipe = MixtureTraining(
        model=given["sparse"],
        data=given["data"][0],
        heldout=None,
        heldout_windows=1,
        measure_batch=1,
        parent=given["sparse"],
        cache=tmp_path / "cache",
        out=tmp_path / "out",
        top_k=experts_per_token(given["sparse"]),
        balance_weight=0.5,
        z_weight=0.25,
        domains=(),
        loads_file=tmp_path / "loads.json",
    )
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    model, batch = recipe.build(), recipe.batch([0, 1])
    found = recipe.loss(model, batch)
    ids = batch.tensors["ids_BT"]
    output = model(ids[:, :-1], output_router_logits=True)
    ce = naive(output.logits.flatten(0, 1), ids[:, 1:].flatten())
    balance = sum(balance_loss(each, 2) for each in output.router_logits) / 2
    z = sum(z_loss(each) for each in output.router_logits) / 2
    torch.testing.assert_close(found.total, ce + 62 * (0.5 * balance + 0.25 * z))
    torch.testing.assert_close(found.parts["ce"] / 62, ce / 62)


def test_loads_do_not_depend_on_the_batch(given):
    model = load_model(given["bam"].path, dtype=torch.float32)
    ids = torch.randint(3, 300, (5, 16), generator=torch.Generator().manual_seed(0))
    one, other = (measure_loads(model, ids, 2, size) for size in (2, 5))
    assert torch.allclose(torch.tensor(one.feed_forward), torch.tensor(other.feed_forward), atol=1e-6)
    assert torch.allclose(torch.tensor(one.attention), torch.tensor(other.attention), atol=1e-6)
    chosen = model(ids, output_router_logits=True).router_logits[1].topk(2).indices.flatten()
    expected = chosen.bincount(minlength=3) / chosen.numel()
    assert torch.allclose(torch.tensor(one.feed_forward[1]), expected, atol=1e-6)


def test_specialisation_is_what_the_expert_tells_of_the_domain():
    def loads(*rows):
        return [{"feed_forward": [row], "attention": [], "entropy": 0.5} for row in rows]

    assert load_figures(loads([0.5, 0.5], [0.5, 0.5]))["specialisation"] == pytest.approx(0)
    apart = load_figures(loads([1.0, 0.0], [0.0, 1.0]))
    assert apart["specialisation"] == pytest.approx(math.log(2))
    assert (apart["load_max"], apart["load_min"]) == (0.5, 0.5)
    assert load_figures([]) == {}


def test_a_dense_model_has_nothing_to_mix(given, tmp_path):
    with pytest.raises(UserError, match="a llama, has no experts"):
        run(UpcycleMix, {"model": given["seed"], "data": given["data"]}, tmp_path)


def test_workers_that_would_cut_other_micro_batches_are_refused(given, tmp_path):
    from stages.training.order import global_batch, micro_batches, worker_share

    inputs = {"model": given["sparse"], "data": given["data"]}
    context = Context(inputs, tmp_path / "out", tmp_path / "scratch", resources=Resources(workers=2))
    with pytest.raises(UserError, match="batch_sequences: 12 does not divide into micro-batches of 4 on 2 workers"):
        UpcycleMix(MixParameters(batch_sequences=12)).run(context)
    batch = global_batch(0, 16, 100, seed=0)
    shares = [micro_batches(worker_share(batch, rank, 2), 4, 2) for rank in range(2)]
    assert shares[0] + shares[1] == micro_batches(batch, 4, 4), "a multiple is cut as one worker cuts it"


def test_routing_is_read_off_the_files(given):
    assert experts_per_token(given["bam"]) == 2
    assert experts_per_token(given["sparse"]) == 2


def test_routing_is_read_off_every_config_that_a_source_may_have(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"n_routed_experts": 8, "num_experts_per_tok": 3}}')
    assert experts_per_token(Model(tmp_path)) == 3


def test_the_micro_batch_decides_the_result_so_lack_of_memory_leaves_it():
    params = MixParameters(micro_batch=4)
    assert MixParameters.identity_class("micro_batch") == "identity"
    less = params.smaller(workers=1)
    assert less is not None
    assert (less.micro_batch, less.activation_checkpointing) == (4, True)
    assert less.smaller(workers=1) is None
    assert less.smaller(workers=2).zero_stage == 1
