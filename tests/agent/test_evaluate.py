"""Evaluation: figures from known episodes, the stage on a tiny model, and a page nobody can inject into."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import ValidationError

from stages.agent.conversation.messages import Message, write_turn
from stages.agent.conversation.records import read_trajectories
from stages.agent.evaluate.figure import draw_outcomes
from stages.agent.evaluate.page import write_page
from stages.agent.evaluate.scores import FIGURES, Outcome, figures, summary
from stages.agent.evaluate.stage import AgentEvaluate, AgentEvaluateParameters
from stages.agent.questions.stage import AgentQuestions
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from tests.agent.world import make_index, run, talk
from tests.tiny import tiny_model

ANSWER = ("assistant", write_turn("So.", "ok"))


def outcome(seed: int, task: str, success: bool, reward: float, kind: str = "fact", **counts: int) -> Outcome:
    found = replace(talk(ANSWER, task=task, reward=reward), kind=kind)
    tokens = 10 * counts.get("turns", 1)
    return Outcome(seed, found, success, tokens, 3 * tokens, Counter({"turns": 1} | counts))


OUTCOMES = [
    outcome(0, "a", True, 1.0, calls=2, turns=3),
    outcome(0, "b", False, 0.5, "bridge", calls=4, turns=5, malformed=2, failed_timeout=1),
    outcome(1, "a", True, 1.0, calls=2, turns=3),
    outcome(1, "b", True, 1.0, "bridge", calls=4, turns=5, malformed=0, failed_error=2),
]


def test_figures_are_means_over_episodes():
    found = figures(OUTCOMES)
    assert found == pytest.approx(
        {
            "success": 0.75,
            "f1": 0.875,
            "calls": 3,
            "turns": 4,
            "tokens": 40,
            "total_tokens": 120,
            "well_formed": 14 / 16,
            "answered": 1,
            "failed_calls": 0.75,
        }
    )
    assert list(found) == list(FIGURES)


def test_seeds_and_kinds_stand_by_themselves():
    found, tables = summary(OUTCOMES)
    assert {name: row["success"] for name, row in tables["by_seed"].items()} == {"0": 0.5, "1": 1.0}
    assert {name: row["f1"] for name, row in tables["by_kind"].items()} == {"fact": 1.0, "bridge": 0.75}
    assert found["success_seed_std"] == pytest.approx(0.5**0.5 / 2)
    assert found["success_stderr"] == pytest.approx(0.25), "over questions, of which a got 1 and b got 0.5"
    assert tables["failed_calls"] == {"failed_timeout": 1, "failed_error": 2}
    assert tables["endings"] == {"answer": 4}
    assert "success_seed_std" not in summary(OUTCOMES[:2])[0]


def test_an_episode_that_never_began_counts():
    nothing = Outcome(0, replace(talk(), ending="window"), False, 0, 0, Counter())
    assert figures([nothing])["well_formed"] == 0
    assert figures([nothing])["answered"] == 0


def test_the_page_is_read_only(tmp_path):
    hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    found = talk(("assistant", hostile), ("tool", hostile), ANSWER, question=hostile, answers=(hostile,))
    write_page(tmp_path / "page.html", [Outcome(0, found, False, 3, 9, Counter(turns=2))] * 101)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("<details>") == 100
    assert "100 of 101 episodes" in page
    assert "no &lt;think&gt;" in page, "what is wrong with a turn is said beside it"


def test_the_figure_is_a_function_of_the_tables(tmp_path):
    _, tables = summary(OUTCOMES)
    for name in "ab":
        draw_outcomes(tmp_path / f"{name}.svg", tables)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    index = make_index(root)
    run(AgentQuestions, {"index": index}, root, kinds=("fact", "cloze"), per_kind=4, heldout_fraction=0.3)
    model = Model(tiny_model(root / "model", max_positions=512))
    return {"model": model, "index": index, "questions": Dataset(root / "out/train")}


ROOM = {"turns": 2, "turn_tokens": 6, "window": 480, "dtype": "float32"}


def test_the_stage_plays_every_question_with_every_seed(world, tmp_path):
    options = {**ROOM, "seeds": (0, 1), "temperature": 1.0, "questions": 3}
    context = run(AgentEvaluate, world, tmp_path, **options, batch_size=4)
    counts = context.results
    assert (counts["success"], counts["f1"], counts["well_formed"], counts["calls"]) == (0, 0, 0, 0), "it babbles"
    assert counts["turns"] == 2
    assert 2 <= counts["tokens"] <= 12
    found = read_trajectories(Dataset(tmp_path / "out/trajectories"))
    assert len(found) == 6
    assert {one.ending for one in found} == {"turns"}
    assert [one.task for one in found[:3]] == [one.task for one in found[3:]]
    assert found[:3] != found[3:], "seeds differ"
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert set(report["details"]["by_seed"]) == {"0", "1"}
    assert {file.name for file in (tmp_path / "out/report").iterdir()} == {
        "report.json",
        "trajectories.html",
        "outcomes.svg",
    }
    again = run(AgentEvaluate, world, tmp_path / "again", **options, batch_size=1)
    assert again.results == counts
    assert read_trajectories(Dataset(tmp_path / "again/out/trajectories")) == found, "whatever company they had"


def test_episodes_end_when_the_window_is_full(world, tmp_path):
    length = 200  # the prompt alone is longer
    context = run(AgentEvaluate, world, tmp_path, **{**ROOM, "window": length}, questions=2)
    assert context.results["turns"] == 0
    (found, _) = read_trajectories(Dataset(tmp_path / "out/trajectories"))
    assert (found.ending, found.messages[-1].role) == ("window", "user")


def test_what_makes_no_sense_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="window: 600 exceeds the model's context of 512"):
        run(AgentEvaluate, world, tmp_path, **{**ROOM, "window": 600})
    with pytest.raises(ValidationError, match="at temperature 0 all seeds give the same"):
        AgentEvaluateParameters(seeds=(0, 1))
    with pytest.raises(ValidationError, match="repeat"):
        AgentEvaluateParameters(seeds=(1, 1), temperature=1.0)


def test_an_index_that_is_gone_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="no index"):
        run(AgentEvaluate, {**world, "index": Dataset(tmp_path)}, tmp_path, **ROOM)


def test_messages_that_were_sampled_are_written_as_text():
    assert Message("assistant", "x", (1, 2)).record() == {"role": "assistant", "content": "x"}
