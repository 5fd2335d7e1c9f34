"""Training of proxies: what is kept and what is not, float32 masters, curves, resuming, the input `optimum`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grafts.loader import load_model
from stages.artifacts import Dataset, Model, Report, write_report
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.evaluate.likelihood import likelihood
from stages.proxy.one_run import plan_of
from stages.proxy.precision import require_float32_masters
from stages.proxy.probe import ProbeParameters, ProxyProbe
from stages.proxy.record import Trained
from stages.proxy.settings import ProxyParameters, ProxyTrainParameters
from stages.proxy.train import ProxyTrain
from stages.proxy.training import ProxyTraining, new_llama, non_embedding_parameters, spread
from stages.stage import Context
from stages.training.recipe import Worker
from tests.proxy.runs import details, run, said
from tests.tiny import tiny_model, tokens_dataset

SHAPE = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
PROBE = {**SHAPE, "batch_sequences": 4}
QUICK = {**SHAPE, "tokens": 8 * 4 * 32, "batch_sequences": 4, "evaluations": 2, "learning_rate": 1e-2, "reduction": 1}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("proxy")
    model = tiny_model(root / "model", max_positions=16)
    held = [
        Dataset(tokens_dataset(root / name, model, num_windows=4, seed=9 + i).path, name=f"corpus[domain={name}]")
        for i, name in enumerate(("prose", "code"))
    ]
    data = tokens_dataset(root / "data", model, num_windows=40, seed=1)
    return {"model": Model(model), "data": Dataset(data.path, name="mix[recipe=web]"), "validation": held}


def weights(context: Context) -> dict[str, torch.Tensor]:
    return load_model(context.output("model"), dtype=torch.float32).state_dict()


def proxy(context: Context) -> Trained:
    return Trained.of(Report(context.output("report")))


def test_a_proxy_is_trained_measured_and_saved(given, tmp_path):
    context = run(ProxyTrain, given, tmp_path, **QUICK)
    found = proxy(context)
    assert (found.recipe, found.steps, found.epochs) == ("web", 8, 8 * 4 / 40)
    assert sorted(domain.name for domain in found.domains) == ["code", "prose"]
    for domain in found.domains:
        assert [step for step, _ in domain.curve] == [4, 8]
        assert domain.curve[-1][1] == domain.final < domain.initial
        held = next(each for each in given["validation"] if str(each.path) == domain.digest)
        windows = torch.tensor(_rows(held))
        measured = likelihood(load_model(context.output("model"), dtype=torch.float32), windows)
        assert domain.final == pytest.approx(measured.nats_per_token, abs=1e-4)
    assert context.results["loss"] == pytest.approx(found.final)
    assert context.results["validation_code"] in [domain.final for domain in found.domains]
    assert (context.output("report") / "curves.svg").exists()
    config = Model(context.output("model")).config
    assert config["max_position_embeddings"] == 32, "as long as the windows, not as the tokenizer's model"


def _rows(data: Dataset) -> list[list[int]]:
    import pyarrow.parquet as pq

    return [row for shard in data.shards for row in pq.read_table(shard)["input_ids"].to_pylist()]


def test_the_windows_that_are_measured_are_spread_over_the_held_out_text(given, tmp_path):
    held = TokenWindows(given["data"], tmp_path)
    assert (spread(held, 5) == held.stack([0, 10, 20, 29, 39])).all()
    assert (spread(held, 1) == held.stack([0])).all()
    assert (spread(held, 99) == held.tensor()).all()


def test_the_reduced_rate_changes_the_rate_and_nothing_else(given, tmp_path):
    standard = run(ProxyTrain, given, tmp_path / "a", **QUICK)
    reduced = run(ProxyTrain, given, tmp_path / "b", **{**QUICK, "reduction": 10})
    same = run(ProxyTrain, given, tmp_path / "c", **{**QUICK, "learning_rate": 1e-3})
    rates = [
        [e["values"]["learning_rate"] for e in c.events if "learning_rate" in e.get("values", {})]
        for c in (standard, reduced)
    ]  # type: ignore[attr-defined]
    assert rates[1] == pytest.approx([rate / 10 for rate in rates[0]]), "warm-up and fall keep their shape"
    assert proxy(standard).initial == proxy(reduced).initial
    assert proxy(standard).setting == proxy(reduced).setting
    assert proxy(reduced).final > proxy(standard).final, "it has moved less"
    for name, tensor in weights(same).items():
        assert torch.equal(tensor, weights(reduced)[name])


def test_equal_work_gives_equal_bytes_and_the_seed_changes_it(given, tmp_path):
    first, second, other = (
        run(ProxyTrain, given, tmp_path / name, seed=seed, **QUICK) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    texts = [(context.output("report") / "report.json").read_text() for context in (first, second, other)]
    assert texts[0] == texts[1] != texts[2]
    assert proxy(first).initial != proxy(other).initial


def test_a_stopped_run_ends_with_the_curve_of_an_uninterrupted_one(given, tmp_path):
    from stages.errors import StoppedError

    whole = run(ProxyTrain, given, tmp_path / "whole", **QUICK)
    stage = ProxyTrain(ProxyTrainParameters(**QUICK, checkpoint_minutes=0))
    steps: list[int] = []

    def stopping() -> bool:
        steps.append(1)
        return len(steps) == 6

    out, scratch = tmp_path / "part/out", tmp_path / "part/scratch"
    with pytest.raises(StoppedError):
        stage.run(Context(given, out=out, scratch=scratch, stopping=stopping))
    resumed = Context(given, out=out, scratch=scratch)
    stage.run(resumed)
    assert proxy(resumed) == proxy(whole)


def test_a_given_model_starts_from_its_weights(given, tmp_path):
    longer = tiny_model(tmp_path / "longer", max_positions=64)
    context = run(ProxyTrain, {**given, "model": Model(longer)}, tmp_path, **QUICK, start="model")
    source = load_model(longer, dtype=torch.float32)
    windows = torch.tensor(_rows(given["validation"][0]))
    measured = likelihood(source, windows).nats_per_token
    found = {domain.digest: domain.initial for domain in proxy(context).domains}
    assert found[str(given["validation"][0].path)] == pytest.approx(measured, abs=1e-4)
    assert proxy(context).parameters == non_embedding_parameters(source)


def test_an_optimum_takes_the_place_of_the_parameters(given, tmp_path):
    told = {"learning_rate": 4e-3, "batch_tokens": 2.0 * 32, "reduction": 8.0}
    write_report(tmp_path / "law", "Step Law", {}, {"optimum": told})
    optimum = {**given, "optimum": Report(tmp_path / "law")}
    found = proxy(run(ProxyTrain, optimum, tmp_path / "a", **{**QUICK, "reduction": None}))
    assert (found.learning_rate, found.reduction, found.batch_sequences) == (pytest.approx(5e-4), 8.0, 2)
    asked = proxy(run(ProxyTrain, optimum, tmp_path / "b", **{**QUICK, "reduction": 2}))
    assert asked.learning_rate == pytest.approx(2e-3)
    for title in ("Ranking of data recipes", "Perplexity"):
        write_report(tmp_path / title, title, {"learning_rate": 1e-5}, {"verdict": None})
        with pytest.raises(UserError, match=f"the report '{title}' tells no standard learning rate"):
            run(ProxyTrain, {**given, "optimum": Report(tmp_path / title)}, tmp_path / "c", **QUICK)


def test_the_batch_of_an_optimum_counts_tokens_not_windows_of_another_length():
    params, told = ProxyTrainParameters(batch_sequences=16), {"learning_rate": 1e-3, "batch_tokens": 65_536.0}
    assert [plan_of(params, told, length).batch_sequences for length in (2048, 128, 10**6)] == [32, 512, 1]
    assert plan_of(params, {"learning_rate": 1e-3}, 128).batch_sequences == 16


def test_held_out_data_given_twice_counts_once(given, tmp_path):
    twice = {**given, "validation": [*given["validation"], given["validation"][0]]}
    context = run(ProxyTrain, twice, tmp_path, **QUICK)
    assert len(proxy(context).domains) == 2
    assert "holds the same as corpus[domain=prose]: it counts once" in said(context)


def test_data_seen_several_times_is_told(given, tmp_path):
    context = run(ProxyTrain, given, tmp_path, **{**QUICK, "tokens": 80 * 32})
    assert "seen 2.0 times" in said(context)


def test_what_cannot_be_measured_is_refused(given, tmp_path):
    with pytest.raises(UserError, match="training data is among the validation"):
        run(ProxyTrain, {**given, "validation": [given["data"]]}, tmp_path, **QUICK)
    other = tiny_model(tmp_path / "other", vocab_size=400)
    foreign = tokens_dataset(tmp_path / "foreign", other, num_windows=4)
    with pytest.raises(UserError, match="tokenizer"):
        run(ProxyTrain, {**given, "data": foreign}, tmp_path, **QUICK)
    with pytest.raises(UserError, match="exceed the model's context of 16"):
        run(ProxyTrain, given, tmp_path, **QUICK, start="model")
    with pytest.raises(ValueError, match="no even multiple of num_heads"):
        ProxyParameters(hidden_size=20, num_heads=4)
    with pytest.raises(ValueError, match="evaluations"):
        ProxyParameters(evaluate_every=3)


def test_masters_in_bfloat16_are_refused(given, tmp_path):
    """DeepSpeed's masters are float32 under bf16; a plain optimiser over bf16 weights is not."""
    context = run(ProxyTrain, given, tmp_path, **{**QUICK, "precision": "bf16"})
    assert proxy(context).final < proxy(context).initial
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])
    with pytest.raises(UserError, match="updates bfloat16 weights") as caught:
        require_float32_masters(plain)
    assert "precision" in caught.value.fix
    require_float32_masters(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))]))


def test_bfloat16_weights_lose_what_float32_masters_keep():
    """Why masters are enforced: a hundred updates at a rate of 1e-5 leave a bfloat16 weight where it was."""
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))
        optimiser = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimiser.step()
        moved[dtype] = float((1 - weight.detach().float()).mean())
    assert moved[torch.bfloat16] == 0.0
    assert moved[torch.float32] == pytest.approx(1e-3, rel=0.01)


def test_a_new_llama_is_a_function_of_its_seed(given):
    params = ProxyParameters(**SHAPE)
    models = [new_llama(params, given["model"], 32, seed) for seed in (3, 3, 4)]
    first, same, other = (model.model.layers[0].mlp.up_proj.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    embeddings = sum(p.numel() for p in [models[0].model.embed_tokens.weight])
    assert non_embedding_parameters(models[0]) == models[0].num_parameters() - embeddings


def test_a_proxy_in_bfloat16_turns_its_positions_as_one_in_float32(given, tmp_path):
    params = ProxyParameters(**SHAPE)
    paths = {"cache": tmp_path / "windows", "results": tmp_path / "results", "out": None}
    recipe = ProxyTraining(params, given["model"], given["data"], given["validation"], 0, num_steps=1, **paths)
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.bfloat16))
    built = recipe.build()
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}
    expected = new_llama(params, given["model"], 32, 0).model.rotary_emb.inv_freq
    assert torch.equal(built.model.rotary_emb.inv_freq, expected)


def test_the_probe_finds_a_window_and_resumes_finished_probes(given, tmp_path):
    quick = {**PROBE, "tokens": 16 * 4 * 32, "num_rates": 3, "lowest_rate": 1e-4, "run_tokens": 64 * 4 * 32}
    context = run(ProxyProbe, given, tmp_path, **quick)
    rows = details(context)["probes"]
    assert [row["rate"] for row in rows] == pytest.approx([1e-4, 4e-4, 1.6e-3])
    assert all(row["initial"] == rows[0]["initial"] for row in rows)
    assert rows[2]["late"] < rows[1]["late"] < rows[0]["late"] < rows[0]["initial"]
    assert "still falls at the highest rate" in said(context)
    found = context.results
    assert found["learning_rate"] == pytest.approx(1.6e-3)
    assert found["reduced_learning_rate"] == pytest.approx(found["learning_rate"] / found["reduction"])
    again = run(ProxyProbe, given, tmp_path, **quick)
    assert "training" not in said(again), "every probe was finished"
    assert details(again) == details(context)
    assert details(context)["optimum"] == {name: found[name] for name in ("learning_rate", "reduction")}
    decoded = [file.parent for file in (tmp_path / "scratch").rglob("*.int32")]
    assert decoded == [tmp_path / "scratch/windows"] * 3, "data and two domains, once for all probes"
    with pytest.raises(UserError, match="less than 4 steps"):
        run(ProxyProbe, given, tmp_path / "few", **{**quick, "tokens": 3 * 4 * 32})


def test_the_early_look_of_a_probe_is_at_its_share_of_the_steps(given, tmp_path):
    quick = {**PROBE, "tokens": 7 * 4 * 32, "num_rates": 3, "lowest_rate": 1e-5, "run_tokens": 8 * 4 * 32}
    context = run(ProxyProbe, given, tmp_path, **quick, weight_decay=0.0)
    for row in details(context)["probes"]:
        assert [step for step, _ in row["curve"]] == [0, 2, 4, 6, 8]
    assert max(details(context)["drift_error"]) < 0.3


def test_a_rate_at_which_training_diverges_ends_the_ladder(given, tmp_path):
    class Diverging(ProxyProbe):
        def _one(self, context, rate, scratch):
            return super()._one(context, rate, scratch) if rate < 5e-3 else None

    quick = {**PROBE, "tokens": 4 * 4 * 32, "num_rates": 4, "lowest_rate": 1e-4, "run_tokens": 8 * 4 * 32, "ratio": 4}
    context = run(Diverging, given, tmp_path, **{**quick, "lowest_rate": 4e-4})
    assert [row["rate"] for row in details(context)["probes"]] == pytest.approx([4e-4, 1.6e-3])
    assert "training diverges at learning rate 0.0064: no higher one is tried" in said(context)
    assert "raise `num_rates`" not in said(context)


def test_a_loss_that_is_no_number_is_told_as_divergence(given, tmp_path):
    source = tiny_model(tmp_path / "damaged", max_positions=32)
    model = load_model(source, dtype=torch.float32)
    model.lm_head.weight.data[0] = torch.nan
    model.save_pretrained(source)
    quick = {**PROBE, "tokens": 4 * 4 * 32, "num_rates": 3, "lowest_rate": 1e-4, "run_tokens": 8 * 4 * 32}
    with pytest.raises(UserError, match=r"diverges at learning rate 0.0001, and two probes below it are needed"):
        run(ProxyProbe, {**given, "model": Model(source)}, tmp_path, **quick, start="model")


def test_a_probe_has_no_learning_rate_of_its_own():
    with pytest.raises(ValueError, match="learning_rate: the probes have rates of their own"):
        ProbeParameters(learning_rate=1e-2)
    with pytest.raises(ValueError, match="reduction"):
        ProbeParameters(reduction=10)
