"""`transfer.select_heads`: what each strategy makes of reports, the share of the cache, clear errors before compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from stages.artifacts import Model, Report, write_report
from stages.errors import UserError
from stages.stage import Context
from stages.transfer.select_heads import SelectHeads, SelectHeadsParams, Strategy

LAYERS, HEADS, GROUPS = 4, 6, 2
SCORES = [[round(0.01 * (layer + 1) * head, 3) for head in range(HEADS)] for layer in range(LAYERS)]
SCORES[0][1] = 0.9


@pytest.fixture
def model(tmp_path: Path) -> Model:
    config = {
        "model_type": "llama", "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS,
    }  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return Model(tmp_path / "model", digest="abc")


@pytest.fixture
def scores(tmp_path: Path) -> Report:
    return scored(tmp_path / "scores")


def scored(folder: Path, *, heads: int = HEADS, digest: str = "abc") -> Report:
    size = HEADS // GROUPS
    by_group = [[row[group * size : (group + 1) * size] for group in range(GROUPS)] for row in SCORES]
    details = {
        "shape": {"layers": LAYERS, "query_heads": heads, "key_value_heads": GROUPS},
        "model": {"digest": digest},
        "scores": SCORES,
        "group_scores": {
            "max": [[max(group) for group in row] for row in by_group],
            "sum": [[sum(group) for group in row] for row in by_group],
        },
    }
    write_report(folder, "Head scores", {}, details)
    return Report(folder)


def select(inputs: dict[str, Any], out: Path, *, seed: int = 0, **params: Any) -> dict[str, Any]:
    stage = SelectHeads(SelectHeadsParams(**params))
    stage.preflight()
    stage.check(inputs)
    stage.run(Context(inputs=inputs, out=out / "out", scratch=out / "scratch", seed=seed))
    return json.loads((out / "out" / "selection" / "report.json").read_text())


def logs(folder: Path, values: list[float], metric: str) -> list[Report]:
    for layer, value in enumerate(values):
        write_report(folder / str(layer), "log", {metric: value}, {})
    return [Report(folder / str(layer)) for layer in range(len(values))]


@pytest.mark.parametrize("strategy", [name for name in get_args(Strategy) if name != "halo-layers"])
def test_every_strategy_reports_the_heads_of_each_layer(model: Model, scores: Report, tmp_path: Path, strategy: str):
    found = select({"model": model, "scores": scores}, tmp_path, strategy=strategy, ratio=0.25)
    details, metrics = found["details"], found["metrics"]
    assert metrics["full_heads"] == sum(map(len, details["full_heads"])) == 6
    assert metrics["full_share"] == 0.25
    assert details["mask"] == [[int(head in heads) for head in range(HEADS)] for heads in details["full_heads"]]
    groups = sum(len({head // 3 for head in heads}) for heads in details["full_heads"])
    assert (metrics["kv_groups_kept"], metrics["cache_bytes_share"]) == (groups, groups / 8)
    assert details["figures"] == ["selection.svg"]
    assert (tmp_path / "out" / "selection" / "selection.svg").stat().st_size > 1000


def test_scores_decide(model: Model, scores: Report, tmp_path: Path):
    def heads(**params: Any) -> list[list[int]]:
        return select({"model": model, "scores": scores}, tmp_path, **params)["details"]["full_heads"]

    assert heads(strategy="global-interp", count=2) == [[1], [], [], [5]]
    assert heads(strategy="global-interp-c", count=4) == [[1], [5], [5], [5]]
    assert heads(strategy="layer-interp", count=4) == [[1], [5], [5], [5]]
    assert heads(strategy="fixed", count=4) == [[0], [0], [0], [0]]


def test_whole_groups_shrink_the_cache_as_far_as_the_heads(model: Model, scores: Report, tmp_path: Path):
    inputs = {"model": model, "scores": scores}
    by_group = select(inputs, tmp_path, strategy="global-interp", ratio=0.25, granularity="kv_group")
    assert by_group["details"]["full_heads"] == [[0, 1, 2], [], [], [3, 4, 5]]
    assert by_group["metrics"]["cache_bytes_share"] == 0.25
    by_sum = select(inputs, tmp_path, strategy="global-interp", count=3, granularity="kv_group", group_score="sum")
    assert by_sum["details"]["full_heads"] == [[0, 1, 2], [], [], []]
    single = select(inputs, tmp_path, strategy="fixed", ratio=0.25)
    assert single["metrics"]["cache_bytes_share"] == 0.5


def test_the_seed_draws(model: Model, tmp_path: Path):
    one, same, other = (
        select({"model": model}, tmp_path, strategy="global-random", seed=seed)["details"]["full_heads"]
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_halo_keeps_whole_layers(model: Model, tmp_path: Path):
    inputs = {
        "model": model,
        "retrieval": logs(tmp_path / "rt", [0.70, 0.60, 0.72, 0.71], "needle_accuracy"),
        "commonsense": logs(tmp_path / "cs", [0.58, 0.58, 0.60, 0.59], "accuracy_mean"),
    }
    found = select(inputs, tmp_path, strategy="halo-layers", ratio=0.25)
    assert found["details"]["full_heads"] == [[], list(range(6)), [], []]
    assert found["details"]["layer_scores"] == pytest.approx([1, 6, 0, 1])
    assert found["metrics"]["cache_bytes_share"] == 0.25
    with pytest.raises(UserError, match=r"count: 8 heads cannot be kept as layers of 6"):
        select(inputs, tmp_path, strategy="halo-layers", count=8)
    with pytest.raises(UserError, match="has no metric 'recall'"):
        select(inputs, tmp_path, strategy="halo-layers", retrieval_metric="recall")
    with pytest.raises(UserError, match="one report of commonsense for each of 4 layers, got 3"):
        select({**inputs, "commonsense": inputs["commonsense"][:3]}, tmp_path, strategy="halo-layers")


@pytest.mark.parametrize(
    ("strategy", "kept"), [("even-layers", [1, 3]), ("interp-layers", [0, 3])], ids=["even", "interp"]
)
def test_whole_layers(model: Model, scores: Report, tmp_path: Path, strategy: str, kept: list[int]):
    found = select({"model": model, "scores": scores}, tmp_path, strategy=strategy, ratio=0.5)
    everything = list(range(HEADS))
    assert found["details"]["full_heads"] == [everything if layer in kept else [] for layer in range(LAYERS)]


@pytest.mark.parametrize("strategy", ["global-interp-c", "layer-interp", "layer-random", "fixed"])
def test_too_few_heads_for_every_layer_are_refused_with_the_least_ratio(
    model: Model, scores: Report, tmp_path: Path, strategy: str
):
    inputs = {"model": model, "scores": scores}
    with pytest.raises(
        UserError, match=r"ratio: 0.1 keeps 2 of 24 query heads; .* at least one in each of 4"
    ) as caught:
        select(inputs, tmp_path, strategy=strategy, ratio=0.1)
    assert "ratio: 0.146" in caught.value.fix
    assert select(inputs, tmp_path, strategy=strategy, ratio=0.146)["metrics"]["full_heads"] == 4


def test_no_head_at_all_is_refused(model: Model, scores: Report, tmp_path: Path):
    with pytest.raises(UserError, match=r"ratio: 0\.01 keeps 0 of 24 query heads"):
        select({"model": model, "scores": scores}, tmp_path, strategy="global-interp", ratio=0.01)
    both = {name: logs(tmp_path / name, [0.5] * 4, "m") for name in ("retrieval", "commonsense")}
    with pytest.raises(UserError, match=r"ratio: 0\.1 keeps 0 of 4 layers"):
        select({"model": model, **both}, tmp_path, strategy="halo-layers", ratio=0.1)


@pytest.mark.parametrize("ratio", [0, 1.5, -1])
def test_a_ratio_is_a_share(ratio: float):
    with pytest.raises(ValueError, match="ratio"):
        SelectHeadsParams(ratio=ratio)


def test_counts_that_do_not_fit_are_refused(model: Model, scores: Report, tmp_path: Path):
    inputs = {"model": model, "scores": scores}
    with pytest.raises(UserError, match="count: 4 heads cannot be kept as key-value groups of 3"):
        select(inputs, tmp_path, count=4, granularity="kv_group")
    with pytest.raises(UserError, match=r"count: 3 keeps 1 of 8 key-value groups(.|\n)*fix: give count: 12 or more"):
        select(inputs, tmp_path, count=3, granularity="kv_group", strategy="global-interp-c")
    with pytest.raises(UserError, match="count: 25 heads cannot be kept") as caught:
        select(inputs, tmp_path, count=25)
    assert "up to 24" in caught.value.fix


def test_scores_are_asked_for_where_needed(model: Model, tmp_path: Path):
    with pytest.raises(UserError, match="global-interp needs scores"):
        select({"model": model}, tmp_path, strategy="global-interp")
    select({"model": model}, tmp_path, strategy="fixed")


def test_scores_of_another_model_are_refused(model: Model, tmp_path: Path):
    other_shape, other_weights = scored(tmp_path / "1", heads=8), scored(tmp_path / "2", digest="xyz")
    for strategy in ("global-interp", "fixed"):
        with pytest.raises(
            UserError, match=r"of a model with 4 layers of 8 query heads and 2 .* the model has 4 layers of 6"
        ):
            select({"model": model, "scores": other_shape}, tmp_path, strategy=strategy)
        with pytest.raises(UserError, match="the scores are of the model xyz, this one is abc"):
            select({"model": model, "scores": other_weights}, tmp_path, strategy=strategy)


def test_a_report_without_scores_is_refused(model: Model, tmp_path: Path):
    write_report(tmp_path / "other", "Perplexity", {}, {})
    with pytest.raises(UserError, match="the report 'Perplexity' holds no head scores"):
        select({"model": model, "scores": Report(tmp_path / "other")}, tmp_path)


def test_equal_work_gives_equal_bytes(model: Model, scores: Report, tmp_path: Path):
    for name in ("one", "two"):
        select({"model": model, "scores": scores}, tmp_path / name)
    for file in ("report.json", "selection.svg"):
        one, two = ((tmp_path / name / "out" / "selection" / file).read_bytes() for name in ("one", "two"))
        assert one == two


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_a_smoke_run_fits_the_generated_model(strategy: Strategy):
    smoke = SelectHeadsParams(strategy=strategy, ratio=0.125, granularity="kv_group").smoke()
    assert smoke.ratio * 2 * 2 >= 2
    assert smoke.strategy != "halo-layers"
