"""Mixtures: exact shares of any stretch, the same whatever the order of the inputs, going on after a stop."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts import Dataset, Report, write_report
from stages.data import mixing
from stages.data.interleaving import Interleaving, slack
from stages.data.mix import MixData, MixDataParams
from stages.data.mixing import plan
from stages.data.recipes import SHIPPED, read_recipe, recipe_file
from stages.data.windows import TokenWindows
from stages.errors import StoppedError, UserError
from stages.proxy.rank import ProxyRank
from stages.stage import Context
from tests.proxy.runs import reports, run, trained
from tests.tiny import tiny_model, tokens_dataset

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Three domains of 40, 25 and 10 windows."""
    directory = tmp_path_factory.mktemp("sources")
    model = tiny_model(directory / "model")
    sizes = {"encyclopedia": 40, "news": 25, "law": 10}
    made = {
        name: tokens_dataset(directory / name, model, num_windows=size, sequence_length=16, seed=size)
        for name, size in sizes.items()
    }
    return {name: Dataset(data.path, name=f"corpus[domain={name}]") for name, data in made.items()}


def mixed(
    sources: dict[str, Dataset],
    out: Path,
    seed: int = 0,
    stopping: Any = None,
    ranking: Report | None = None,
    **params: Any,
) -> Context:
    stage = MixData(MixDataParams(**{"datasets": tuple(sources), **params}))
    stage.preflight()
    inputs = {"data": list(sources.values()), **({"ranking": ranking} if ranking else {})}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / "out", scratch=out / "scratch", seed=seed)
    context.stopping = stopping or context.stopping
    stage.run(context)
    return context


def rows(context: Context) -> list[tuple[int, ...]]:
    shards = Dataset(context.output("data")).shards
    return [tuple(row) for shard in shards for row in pq.read_table(shard)["input_ids"].to_pylist()]


def origins(context: Context, sources: dict[str, Dataset]) -> list[str]:
    found = {
        tuple(row): name
        for name, data in sources.items()
        for row in TokenWindows(data, context.scratch / "look").tensor().tolist()
    }
    return [found[row] for row in rows(context)]


@given(WEIGHTS)
@settings(deadline=None, max_examples=40)
def test_every_stretch_has_its_shares_to_within_the_bound(weights: list[int]):
    sequence = Interleaving([Fraction(weight) for weight in weights])
    picks = np.array([next(sequence) for _ in range(200)])
    for index, share in enumerate(sequence.shares):
        counts = np.r_[0, (picks == index).cumsum()]
        off = [abs(count - turn * share) for turn, count in enumerate(counts.tolist())]
        assert max(off) <= slack(len(weights)) < 1
        for length in (1, 7, 50):
            assert all(abs(counts[i + length] - counts[i] - length * share) < 2 for i in range(200 - length))


def test_the_bound_is_met_where_the_theorem_says_it_cannot_be_less():
    sequence = Interleaving([Fraction(1), Fraction(1)])
    assert [next(sequence) for _ in range(6)] in ([0, 1] * 3, [0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 0])
    assert slack(1) == 0
    assert slack(2) == Fraction(1, 2)


@given(WEIGHTS, st.integers(0, 60))
@settings(deadline=None, max_examples=30)
def test_a_sequence_counts_its_picks(weights: list[int], after: int):
    whole = Interleaving([Fraction(weight) for weight in weights])
    picks = [next(whole) for _ in range(after)]
    assert whole.counts == [picks.count(index) for index in range(len(weights))]


def test_a_mixture_has_the_shares_of_its_recipe(tmp_path: Path, sources: dict[str, Dataset]):
    context = mixed(sources, tmp_path, weights={"encyclopedia": 0.5, "news": 0.3, "law": 0.2})
    found = origins(context, sources)
    assert found.count("law") == 10
    assert 46 < context.results["windows"] == len(found) < 54
    assert {name: found.count(name) / len(found) for name in sources} == {
        name: context.results[f"share_{name}"] for name in sources
    }
    for start in range(len(found) - 10):
        part = found[start : start + 10]
        for name, share in (("encyclopedia", 5), ("news", 3), ("law", 2)):
            assert abs(part.count(name) - share) < 2
    assert context.results["largest_deviation"] <= 0.75
    card = Dataset(context.output("data")).card
    assert (card.num_tokens, card.sequence_length, card.schema) == (16 * len(found), 16, "tokens")
    assert len(set(rows(context))) == len(found)


def test_every_window_comes_once_an_epoch(tmp_path: Path, sources: dict[str, Dataset]):
    weights = {"encyclopedia": 0, "news": 0, "law": 1}
    twice = mixed(sources, tmp_path, weights=weights, tokens=16 * 20, max_epochs=2)
    law = {tuple(row) for row in TokenWindows(sources["law"], tmp_path / "look").tensor().tolist()}
    assert set(rows(twice)[:10]) == set(rows(twice)[10:]) == law
    assert rows(twice)[:10] != rows(twice)[10:]
    assert twice.results["largest_epochs"] == 2


def test_the_order_of_the_inputs_and_the_unit_of_weights_do_not_matter(tmp_path: Path, sources: dict[str, Dataset]):
    turned = dict(reversed(sources.items()))
    weights = {"encyclopedia": 0.6, "news": 0.3, "law": 0.1}
    first = mixed(sources, tmp_path / "a", weights=weights)
    second = mixed(turned, tmp_path / "b", weights={name: 10 * weight for name, weight in weights.items()})
    other = mixed(sources, tmp_path / "c", weights=weights, seed=1)
    assert rows(first) == rows(second) != rows(other)
    cards = [Dataset(context.output("data")).card for context in (first, second)]
    assert cards[0] == cards[1]


def test_a_mixture_that_was_stopped_goes_on_and_ends_the_same(
    tmp_path: Path, sources: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mixing, "SHARD_BYTES", 4 * 16 * 7)
    weights = {"encyclopedia": 2, "news": 1, "law": 1}
    whole = mixed(sources, tmp_path / "whole", weights=weights)
    with pytest.raises(StoppedError):
        mixed(sources, tmp_path / "parts", weights=weights, stopping=iter([False, True]).__next__)
    left = sorted((tmp_path / "parts/scratch/shards").glob("*.parquet"))
    stamps = [file.stat().st_mtime_ns for file in left]
    assert len(left) == 2
    parts = mixed(sources, tmp_path / "parts", weights=weights)
    shards = [Dataset(context.output("data")).shards for context in (whole, parts)]
    assert [file.stat().st_mtime_ns for file in shards[1][:2]] == stamps
    assert [file.read_bytes() for file in shards[0]] == [file.read_bytes() for file in shards[1]]
    assert len(shards[0]) == -(-len(rows(whole)) // 7)


def test_too_little_data_says_how_much_there_is(tmp_path: Path, sources: dict[str, Dataset]):
    with pytest.raises(UserError, match=r"law has 10 windows, a share of 0.5 of 40 windows takes about 20") as caught:
        mixed(sources, tmp_path, weights={"encyclopedia": 1, "news": 0, "law": 1}, tokens=640)
    assert "set max_epochs to 3, lower tokens or the weight of law" in caught.value.fix
    enough = mixed(sources, tmp_path, weights={"encyclopedia": 1, "news": 0, "law": 1}, tokens=640, max_epochs=3)
    assert enough.results["windows"] == 40


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"weights": {"news": 1}}, "has no weight for 'encyclopedia'"),
        ({"weights": {"encyclopedia": 1, "news": 1, "law": 1, "lawn": 1}}, "a weight for 'lawn'; did you mean 'law'"),
        ({"weights": {"encyclopedia": 1, "news": -1, "law": 1}}, "the weight of 'news' is -1"),
        ({"weights": {"encyclopedia": 0, "news": 0, "law": 0}}, "no weight is above 0"),
        ({}, "weights or a recipe"),
        ({"recipe": "balancd"}, "'balancd' is unknown; did you mean 'balanced'"),
        ({"recipe": "none.yaml"}, "there is no file"),
        ({"recipe": "balanced", "datasets": ("law", "news", "encyclopedia")}, "'encyclopedia' is called 'law'"),
        ({"recipe": "balanced", "datasets": ("encyclopedia", "news", "law", "law")}, "names one twice"),
        ({"weights": {"law": 1}, "datasets": ("law",)}, "1 names for 3 datasets"),
        ({"recipe": "balanced", "tokens": 3}, "tokens: 3 is less than one window of 16"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, sources: dict[str, Dataset], params: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        mixed(sources, tmp_path, **params)


def ranked(directory: Path, mixtures: dict[str, dict[str, str]], losses: dict[str, float]) -> Report:
    """The report of `proxy.rank` on proxies of these mixtures, two seeds each."""
    proxies = [
        trained(name, loss + seed / 1000, seed=seed, mixture=mixtures.get(name, {}))
        for name, loss in losses.items()
        for seed in (0, 1)
    ]
    context = run(ProxyRank, {"proxies": reports(directory / "proxies", proxies)}, directory)
    return Report(context.output("report"), name="rank")


def test_the_mixture_that_proxies_rank_first_is_made(tmp_path: Path, sources: dict[str, Dataset]):
    weights = {"encyclopedia": 0.1, "news": 0.5, "law": 0.4}
    small = mixed(sources, tmp_path / "small", weights=weights)
    card = Dataset(small.output("data")).card
    assert card.mixture == {"encyclopedia": "1/10", "news": "1/2", "law": "2/5"}

    mixtures = {"mine": dict(card.mixture), "other": {"encyclopedia": "1", "news": "1", "law": "1"}}
    ranking = ranked(tmp_path / "rank", mixtures, {"mine": 3.0, "other": 3.5})
    made = mixed(sources, tmp_path / "made", recipe="ranked", ranking=ranking)
    assert rows(made) == rows(small)
    assert Dataset(made.output("data")).card.source.startswith("mine: ")

    turned = ranked(tmp_path / "turned", mixtures, {"mine": 3.5, "other": 3.0})
    other = mixed(sources, tmp_path / "other", recipe="ranked", ranking=turned)
    assert rows(other) == rows(mixed(sources, tmp_path / "even", recipe="balanced")) != rows(made)


def test_a_ranking_that_tells_no_mixture_is_refused(tmp_path: Path, sources: dict[str, Dataset]):
    with pytest.raises(UserError, match="recipe: ranked needs the input ranking"):
        mixed(sources, tmp_path, recipe="ranked")
    plain = ranked(tmp_path / "plain", {}, {"filtered": 3.0, "whole": 3.5})
    with pytest.raises(UserError, match=r"first, filtered, is not a mixture of `data\.mix`"):
        mixed(sources, tmp_path, recipe="ranked", ranking=plain)
    strange = ranked(tmp_path / "strange", {"a": {"law": "1", "code": "1"}}, {"a": 3.0, "b": 3.5})
    with pytest.raises(UserError, match="recipe a has a weight for 'code'"):
        mixed(sources, tmp_path, recipe="ranked", ranking=strange)
    write_report(tmp_path / "probe", "Window of learning rates", {}, {})
    with pytest.raises(UserError, match="'Window of learning rates' ranks no recipes"):
        mixed(sources, tmp_path, recipe="ranked", ranking=Report(tmp_path / "probe"))


def test_datasets_that_do_not_fit_are_refused(tmp_path: Path, sources: dict[str, Dataset]):
    model = tiny_model(tmp_path / "model")
    longer = {**sources, "law": tokens_dataset(tmp_path / "law", model, sequence_length=24)}
    with pytest.raises(UserError, match="encyclopedia has windows 16, law has 24"):
        mixed(longer, tmp_path, recipe="balanced")


def test_recipes_that_come_along_are_named_like_their_files_and_count_by_content(tmp_path: Path):
    for file in SHIPPED.glob("*.yaml"):
        assert read_recipe(recipe_file(file.stem)).name == file.stem
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nweights: {a: 0.1, b: 0.2}\n")
    recipe = read_recipe(recipe_file(str(own)))
    assert recipe.weights == {"a": Fraction(1, 10), "b": Fraction(1, 5)}
    stage = MixData(MixDataParams(datasets=("a", "b"), recipe=str(own)))
    assert stage.sources() == {"recipe": own}
    assert "recipe" not in stage.params.identity()
    for text, told in (
        ("weights: [1]", "has no weights"),
        ("wieghts: {a: 1}\nweights: {a: 1}", "did you mean 'weights'"),
    ):
        own.write_text(text)
        with pytest.raises(UserError, match=told):
            read_recipe(own)


def test_a_plan_takes_all_that_the_shares_allow():
    mixture = plan({"a": Fraction(1), "b": Fraction(3)}, {"a": 100, "b": 30}, None, 1, seed=0)
    assert (mixture.picks == mixture.names.index("b")).sum() == 30
    assert len(mixture.picks) in (39, 40, 41)
    chosen = mixture.windows[mixture.picks == mixture.names.index("b")]
    assert sorted(chosen.tolist()) == list(range(30))
