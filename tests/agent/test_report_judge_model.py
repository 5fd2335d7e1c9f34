"""A model as judge: ratings are expectations over five digits, the same each time, whatever the length of the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grafts.loader import save_model
from stages.agent.report import judge_model
from stages.agent.report.actions import Initialize, Search, Write
from stages.agent.report.judge import PLAN, REPORT, TEXT, Draft, Plan, Text
from stages.agent.report.judge_model import ModelJudge, load_judge
from stages.agent.report.judge_rule import RuleJudge
from stages.agent.report.worlds import make_judge
from stages.artifacts import Model
from tests.agent.library import OVEN, STEAM, TOPIC, after
from tests.agent.lively import lively
from tests.machine import one_thread as one_thread
from tests.tiny import tiny_model

BEGIN = Initialize(("Rye bread", "Pumpernickel"))
WHOLE = Draft(TOPIC, after(BEGIN))
DUE = after(BEGIN, (Search(("oven",)), (OVEN, STEAM)))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> ModelJudge:
    directory: Path = tmp_path_factory.mktemp("judge")
    quiet = tiny_model(directory / "quiet", max_positions=400)
    save_model(lively(quiet), directory / "lively", tokenizer_from=quiet)
    return load_judge(Model(directory / "lively"))


def test_without_a_model_a_rule_judges() -> None:
    assert isinstance(make_judge(None), RuleJudge)


def test_it_rates_every_kind_of_work_between_1_and_5(judge: ModelJudge) -> None:
    for work, criteria in (
        (Plan(TOPIC, DUE, ("a", "b")), PLAN),
        (Text(TOPIC, DUE, "x"), TEXT),
        (Draft(TOPIC, DUE), REPORT),
    ):
        ratings = judge.rate(work, criteria)
        assert list(ratings) == list(criteria)
        assert all(1 <= rating <= 5 for rating in ratings.values())
        assert len(set(ratings.values())) == len(criteria), "each criterion asks something else"
        assert judge.rate(work, criteria) == ratings


def test_a_rating_is_the_mean_of_the_digits(judge: ModelJudge) -> None:
    (rating,) = judge.rate(Draft(TOPIC, after()), ["insight"]).values()
    ids = judge._prompt(
        Draft(TOPIC, after()).shown(), "Does the report connect what it found, and conclude something from it?"
    )
    with torch.no_grad():
        logits_V = judge.model(torch.tensor([ids])).logits[0, -1].double()
    weights = logits_V[[judge.renderer.encode_text(digit)[0] for digit in "12345"]].exp()
    expected = sum(digit * weight for digit, weight in enumerate(weights.tolist(), start=1)) / weights.sum().item()
    assert rating == pytest.approx(expected, rel=1e-3)


def test_what_it_has_rated_it_does_not_read_again(judge: ModelJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = list[int]()
    judge.model.register_forward_pre_hook(lambda _, ids: reads.append(1))
    work = Draft(TOPIC, replace(after(BEGIN), query="Asked only here?"))
    ratings = judge.rate(work, REPORT)
    assert len(reads) == len(REPORT)
    assert judge.rate(Draft(TOPIC, replace(work.state, finished=True)), REPORT) == ratings, "it reads the same"
    assert len(reads) == len(REPORT)
    monkeypatch.setattr(judge_model, "REMEMBERED", len(judge._known))
    judge.rate(Draft(TOPIC, replace(work.state, query="Another?")), REPORT)
    assert len(judge._known) == judge_model.REMEMBERED
    assert judge.rate(work, REPORT) == ratings


def test_what_is_too_long_is_cut_at_its_end(judge: ModelJudge) -> None:
    long = after(BEGIN, (Search(("oven",)), (OVEN,)), Write("word " * 3000))
    longer = after(BEGIN, (Search(("oven",)), (OVEN,)), Write("word " * 3000 + "end"))
    ratings = [judge.rate(Draft(TOPIC, state), REPORT) for state in (long, longer)]
    assert ratings[0] == ratings[1]
