"""`quantize.compare`: quantised models by what they take and what they give."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.artifacts import Dataset, Report
from stages.errors import UserError
from stages.quantize.compare import QuantizeCompare
from stages.quantize.comparison import Arm, corrections_ahead, front, settings
from stages.quantize.figures import draw_front
from stages.stage import Context
from tests.quantize.runs import quantize

ARM = Arm("RTN", "RTN", "4 bits", {"bits": 4}, {})


def arm(size: float, perplexity: float, method: str = "RTN", base: str = "RTN", **params: Any) -> Arm:
    """Of a parent with perplexity 2."""
    figures = {"bytes_after": size, "child_perplexity": perplexity, "parent_perplexity": 2.0}
    chosen = {} if method == base else {"base": base}
    return Arm(method, base, "4 bits", {"bits": 4, **chosen, **params}, figures)


sizes = st.integers(1, 6).map(float)


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=12))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(points: list[tuple[float, float]]):
    made = settings([arm(*point, number=number) for number, point in enumerate(points)])
    best = {(each.mean("bytes_after"), each.mean("child_perplexity")) for each in front(made)}
    beaten = {
        (size, value)
        for (size, value), (other, less) in product(points, points)
        if other <= size and less <= value and (other, less) != (size, value)
    }
    assert best == set(points) - beaten


def test_seeds_are_one_setting_and_corrections_must_win_with_all_of_them():
    base = [arm(10, value) for value in (5.0, 4.0)]
    won = [arm(12, value, "GlowQ", rank=4) for value in (3.9, 3.0)]
    lost = [arm(11, value, "GlowQ", rank=2) for value in (4.1, 3.0)]
    alone = [arm(11, 1.0, "GlowQ", "GPTQ", rank=2)]
    made = settings([*won, *base, *lost, *alone])
    assert [len(each.arms) for each in made] == [2, 1, 2, 2]
    assert made[0].all("child_perplexity") == [4.0, 5.0]
    assert corrections_ahead(made) == (1, 2)


def test_a_base_is_the_one_that_was_told_the_same():
    base = [arm(10, 5.0, "GPTQ", "GPTQ", sequential=sequential) for sequential in (True, False)]
    both = [arm(12, 4.0, "GlowQ", "GPTQ", sequential=sequential, rank=4) for sequential in (True, False)]
    made = settings([*base, *both])
    assert corrections_ahead(made) == (2, 2)
    assert sorted(each.label for each in made) == sorted(
        f"4 bits, sequential {sequential}" for sequential in (True, False) * 2
    )


def test_equal_figures_of_seeds_are_drawn(tmp_path: Path):
    made = settings([arm(10, 14.062086260253718) for _ in range(3)])
    draw_front(tmp_path / "front.svg", made, front(made))
    assert (tmp_path / "front.svg").stat().st_size > 0


def reports(directory: Path, parent: Path, tokens: Dataset, **inputs: Any) -> list[Report]:
    runs = [
        quantize("rtn", parent, directory / "rtn", tokens, symmetric=False, **inputs),
        quantize("gptq", parent, directory / "gptq", tokens, symmetric=False, **inputs),
        quantize("glowq", parent, directory / "glowq", tokens, rank=8, **inputs),
        quantize("glowq_s", parent, directory / "glowq_s", tokens, rank=8, budget=0.5, **inputs),
        quantize("mixed", parent, directory / "mixed", tokens, added_bytes_ratio=0.5, **inputs),
    ]
    return [Report(run.output("report"), name=str(number)) for number, run in enumerate(runs)]


def test_the_reports_of_all_stages_stand_in_one_table(tmp_path: Path, parent: Path, tokens: Dataset):
    given_reports = reports(tmp_path, parent, tokens)
    context = Context({"reports": given_reports}, tmp_path / "out", tmp_path / "scratch")
    stage = QuantizeCompare(QuantizeCompare.Params())
    stage.check(context.inputs)
    stage.run(context)
    assert context.results["models"] == context.results["settings"] == 5
    assert context.results["corrected_settings"] == 2
    out = context.output("report")
    table = json.loads((out / "report.json").read_text())["details"]["comparison"]
    assert len(table) == 6
    assert [float(row[1]) for row in table[1:]] == sorted(float(row[1]) for row in table[1:])
    assert sum(row[-1] == "yes" for row in table) == context.results["on_front"] >= 1
    assert (out / "front.svg").read_text().count("<svg") == 1
    assert len((out / "comparison.md").read_text().splitlines()) == 7
    assert any("GPTQ" in row[0] for row in table)
    assert any("as more bits" in row[0] for row in table)
    assert any("GlowQ-S with 50% of the corrections" in row[0] for row in table)


def test_reports_that_cannot_be_compared_are_refused(tmp_path: Path, parent: Path, tokens: Dataset):
    told = quantize("rtn", parent, tmp_path / "told", tokens)
    content = json.loads((told.output("report") / "report.json").read_text())
    with pytest.raises(UserError, match="not of a quantised model"):
        Arm.of(changed(tmp_path / "a", {**content, "title": "Distillation"}))
    silent = {key: value for key, value in content["metrics"].items() if key != "child_perplexity"}
    with pytest.raises(UserError, match="does not tell child_perplexity"):
        Arm.of(changed(tmp_path / "b", {**content, "metrics": silent}))
    with pytest.raises(UserError, match=r"perplexity 2\.0 in one report and 3\.0 in another"):
        settings([arm(1, 1), replace(ARM, figures={**arm(1, 1).figures, "parent_perplexity": 3.0})])
    with pytest.raises(UserError, match="measured in bfloat16, others in float32"):
        settings([replace(arm(1, 1), computed_in=kind) for kind in ("float32", "bfloat16")])


def changed(directory: Path, content: dict[str, Any]) -> Report:
    directory.mkdir()
    (directory / "report.json").write_text(json.dumps(content))
    return Report(directory)
