"""The short series that every run of the tests tries; `python -m tests.fuzz` tries ten thousand files."""

from __future__ import annotations

from collections import Counter

import pytest

from pipelines.spec import load as module
from tests.fuzz.corpus import originals
from tests.fuzz.trial import Series

NUM_FILES = 500


@pytest.fixture
def series(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Series(tmp_path / "series", originals(), seed=4)


def test_any_file_gives_a_plan_or_a_clear_error(series):
    counts: Counter[str] = Counter()
    for number, original, _, answer, _ in series.run(range(NUM_FILES)):
        again = f"python -m tests.fuzz --seed {series.seed} --only {number}"
        assert answer.verdict != "BAD", f"{original.name}, {again}\n{answer.text}"
        counts[answer.verdict] += 1
    assert min(counts[verdict] for verdict in ("plan", "refused", "refused in planning")) >= NUM_FILES // 50, counts


def test_the_originals_are_fine(series):
    for original in originals():
        if original.weight > 1:
            assert series.try_text(original).verdict == "plan", original.name


def test_a_series_is_the_same_every_time(series):
    first = [data for _, _, data, _, _ in series.run(range(20))]
    assert first == [data for _, _, data, _, _ in series.run(range(20))]
    assert len(set(first)) > 15


@pytest.mark.parametrize("error", [ValueError("no"), RecursionError(), MemoryError(), AssertionError()])
def test_a_traceback_is_noticed(series, monkeypatch, error):
    def fail(*_args):
        raise error

    monkeypatch.setattr(module, "order", fail)
    answers = [answer for _, original, _, answer, _ in series.run(range(40)) if original.kind == "pipeline"]
    assert any(answer.verdict == "BAD" and type(error).__name__ in answer.text for answer in answers)
