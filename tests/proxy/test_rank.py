"""The stage that ranks: tables, refusals, ties, larger runs; nothing depends on names or order."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from stages.artifacts import Report, write_report
from stages.errors import UserError
from stages.proxy.rank import ProxyRank
from tests.proxy.runs import details, reports, run, said, trained

RECIPES = {"web": 3.0, "books": 3.2, "code": 3.5, "shuffled": 5.0}


def matrix(losses=RECIPES, *, noise=0.01, seeds=2, **more):
    rng = np.random.default_rng(0)
    return [
        trained(name, [loss + float(rng.normal(0, noise)), loss + 0.5], seed=seed, **more)
        for name, loss in losses.items()
        for seed in range(seeds)
    ]


def rank(directory, proxies, larger=None, **params):
    inputs = {"proxies": reports(directory / "proxies", proxies)}
    if larger:
        inputs["larger"] = reports(directory / "larger", larger)
    return run(ProxyRank, inputs, directory, **params)


def order(context):
    (table,) = [each for each in details(context)["tables"] if each["label"] == details(context)["verdict"]]
    return [row["recipe"] for row in table["ranks"]]


def test_recipes_come_out_in_order(tmp_path):
    context = rank(tmp_path, matrix())
    assert order(context) == ["web", "books", "code", "shuffled"]
    assert context.results["best_or_tied"] == 1
    assert context.results["tied_share"] == 0
    assert "best is web, by 1k at 0.0001" in said(context)
    assert re.search(r"1k at 0.0001: web 3\.\d+ < books 3\.\d+ < code", said(context))
    rows = details(context)["tables"][0]["ranks"]
    assert rows[0]["ranks_by_domain"] == {"domain 0": 1.0, "domain 1": 1.0}
    for name in details(context)["figures"]:
        assert (context.output("report") / name).stat().st_size > 1000


def test_names_and_order_mean_nothing(tmp_path):
    first = rank(tmp_path / "a", matrix())
    renamed = [proxy.__class__(**{**proxy.__dict__, "recipe": f"z{5 - len(proxy.recipe)}"}) for proxy in matrix()]
    second = rank(tmp_path / "b", renamed[::-1])
    rows = [
        [{k: v for k, v in row.items() if k not in ("recipe", "tied_with")} for row in details(c)["tables"][0]["ranks"]]
        for c in (first, second)
    ]
    assert rows[0] == rows[1]
    assert first.results == second.results


def test_two_seeds_of_one_recipe_are_a_tie(tmp_path):
    context = rank(tmp_path, matrix({"a": 3.0, "same as a": 3.001, "bad": 5.0}, noise=0.02))
    table = details(context)["tables"][0]
    assert table["ranks"][0]["tied_with"] == [table["ranks"][1]["recipe"]]
    assert table["ranks"][2]["tied_with"] == []
    assert "tied with" in said(context)
    assert " = " in said(context)
    assert context.results["best_or_tied"] == 2


def test_one_seed_gives_an_order_and_no_verdict(tmp_path):
    context = rank(tmp_path, matrix(seeds=1))
    assert context.results["tied_share"] == 1
    assert "seed_noise" not in context.results
    assert "nothing is known of the noise" in said(context)


def test_the_same_run_given_twice_counts_once(tmp_path):
    context = rank(tmp_path, [*matrix(), *matrix()])
    assert context.results["recipes"] == 4
    assert details(context)["tables"][0]["ranks"][0]["seeds"] == 2


def test_losses_that_barely_moved_are_refused_with_the_rate_to_try(tmp_path):
    stuck = {name: 5.9 + 0.01 * loss for name, loss in RECIPES.items()}
    with pytest.raises(UserError, match=r"barely moved .* fell by 0\.\d% .* expected 20\.0%") as caught:
        rank(tmp_path / "a", matrix(stuck, initial=6.2))
    assert "proxy.probe" in caught.value.fix
    tables = [*matrix(stuck, learning_rate=1e-6, initial=6.2), *matrix(learning_rate=1e-4, initial=6.2)]
    context = rank(tmp_path / "b", tables)
    assert context.results["refused"] == 1
    assert context.results["learning_rate"] == 1e-4
    assert details(context)["tables"][0]["ranks"] == []
    assert "not ranked, 1k at 1e-06" in said(context)
    forced = rank(tmp_path / "c", tables, least_fall=0, least_share=0)
    assert forced.results["refused"] == 0


def test_a_rate_far_below_what_another_reaches_is_refused(tmp_path):
    """It fell by a third of its initial value, but by less than half of what it falls at the standard rate."""
    slow = {name: 4.2 + 0.1 * loss for name, loss in RECIPES.items()}
    tables = [*matrix(slow, learning_rate=1e-5), *matrix({k: v - 2 for k, v in RECIPES.items()}, learning_rate=1e-3)]
    assert "of what it falls at the best learning rate" in said(rank(tmp_path / "a", tables))
    assert rank(tmp_path / "b", tables[: len(tables) // 2]).results["refused"] == 0, "alone it passes"


def test_a_table_of_one_recipe_is_told_and_measured_domains_are_compared_before_the_run(tmp_path):
    lone = trained("web", [3.0, 3.5], learning_rate=1e-3)
    assert "not ranked, 1k at 0.001: it has one recipe, web" in said(rank(tmp_path / "a", [*matrix(), lone]))
    other = reports(tmp_path / "b", [*matrix(), trained("books", 3.0, learning_rate=1e-3)])
    with pytest.raises(UserError, match="was measured on"):
        ProxyRank(ProxyRank.Params()).check({"proxies": other})


def test_a_rising_loss_is_refused_as_too_high(tmp_path):
    with pytest.raises(UserError, match="is too high"):
        rank(tmp_path, matrix({"a": 7.0, "b": 8.0}))


def test_larger_runs_tell_what_the_ranking_is_worth(tmp_path):
    misled = dict(zip(RECIPES, (3.4, 3.0, 3.2, 3.9), strict=True))
    proxies = [
        *matrix(learning_rate=1e-4, reduction=30.0),
        *matrix(misled, learning_rate=3e-3, reduction=1.0),
    ]
    target = {"web": 2.0, "books": 2.1, "code": 2.3, "shuffled": 4.0}
    larger = [
        *matrix(target, seeds=1, learning_rate=1e-3, parameters=9000),
        *matrix({k: v + 0.6 for k, v in target.items()}, seeds=1, learning_rate=1e-4, parameters=9000),
    ]
    context = rank(tmp_path, proxies, larger)
    found = context.results
    assert found["spearman"] == found["kendall"] == found["pairwise_agreement"] == 1
    assert found["regret_top1"] == 0
    assert found["spearman_standard"] < 0.5
    assert found["regret_top1_standard"] == pytest.approx(0.1, abs=0.02), "books for web"
    assert (context.output("report") / "agreement.svg").exists()
    assert details(context)["agreement_of_tables"][0]["spearman"] < 1
    assert set(details(context)["tables"][0]["agreement_by_domain"]) == {"domain 0", "domain 1"}
    json.dumps(details(context), allow_nan=False)


def test_one_table_holds_the_whole_comparison(tmp_path):
    stuck = {name: 5.9 + 0.01 * loss for name, loss in RECIPES.items()}
    proxies = [*matrix(stuck, learning_rate=1e-6, initial=6.2), *matrix(learning_rate=1e-4, initial=6.2)]
    target = {"books": 2.0, "web": 2.1, "code": 2.3, "shuffled": 4.0}
    context = rank(tmp_path, proxies, matrix(target, seeds=1, noise=0, learning_rate=1e-3, parameters=9000))
    head, *rows = details(context)["comparison"]
    assert head == ["recipe", "1k at 1e-06", "1k at 0.0001", "larger, tuned"]
    assert [row[0] for row in rows[:4]] == list(target), "the best for the larger model first"
    assert [row[3] for row in rows[:4]] == ["2.250", "2.350", "2.550", "4.250"], "means of the two domains"
    assert [row[2].partition(" ")[2] for row in rows[:4]] == ["(2; 2–2)", "(1; 1–1)", "(3; 3–3)", "(4; 4–4)"]
    assert all("(" not in row[1] for row in rows), "what is refused has no ranks"
    told = {row[0]: row[1:] for row in rows[4:]}
    assert told["Spearman with the larger runs"][1] == "0.80"
    assert told["ranked"] == ["refused", "yes", ""]
    assert told["regret of the best 1, 2, …"][1] == "0.100, 0.000, 0.000"
    lines = (context.output("report") / "comparison.md").read_text().splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {5}


def test_each_recipe_counts_at_its_own_best_rate(tmp_path):
    """At one rate `web` is better, at another `books`; tuned, `books` wins."""
    larger = [
        *matrix({"web": 2.0, "books": 2.4}, seeds=1, noise=0, learning_rate=1e-3, parameters=9000),
        *matrix({"web": 2.2, "books": 1.8}, seeds=1, noise=0, learning_rate=1e-4, parameters=9000),
    ]
    context = rank(tmp_path, matrix({"web": 3.0, "books": 3.2}), larger)
    assert sorted(details(context)["larger"].values()) == pytest.approx([2.05, 2.25])
    assert context.results["spearman"] == -1


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(UserError, match="1 tables of one recipe"):
        rank(tmp_path / "a", matrix({"web": 3.0}))
    alone = rank(tmp_path / "alone", matrix({"web": 3.0}), least_fall=0, least_share=0)
    assert alone.results["tied_share"] == 1
    with pytest.raises(UserError, match="measured on domain 0"):
        rank(tmp_path / "b", [*matrix(), trained("odd", 3.0)])
    sizes = [*matrix(seeds=1, parameters=8000), *matrix(seeds=1, parameters=9000)]
    with pytest.raises(UserError, match=r"differ in parameters \(8000 and 9000\), expected one model"):
        rank(tmp_path / "c", matrix(), sizes)
    budgets = [*matrix(seeds=1, tokens=1000), *matrix(seeds=1, tokens=2000, learning_rate=1e-3)]
    with pytest.raises(UserError, match=r"differ in tokens \(1000 and 2000\), expected one model and budget"):
        rank(tmp_path / "d", matrix(), budgets)
    schedules = [matrix(seeds=1, setting=f'{{"schedule":"{name}"}}') for name in ("wsd", "cosine")]
    with pytest.raises(UserError, match=r'differ in schedule \("cosine" and "wsd"\)'):
        rank(tmp_path / "e", matrix(), [*schedules[0], *schedules[1]])
    write_report(tmp_path / "other", "Perplexity", {}, {})
    with pytest.raises(UserError, match="not that of a proxy: 'Perplexity'"):
        run(ProxyRank, {"proxies": [Report(tmp_path / "other")]}, tmp_path)
