"""Episodes of reports: every turn in a conversation of its own, refusals in words, endings, and what a prompt shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.agent.conversation.messages import write_turn
from stages.agent.environment.base import Observation
from stages.agent.environment.collection import Collection
from stages.agent.environment.episodes import Limits as TurnLimits
from stages.agent.environment.episodes import play, scripted
from stages.agent.environment.toolbox import Toolbox
from stages.agent.report.actions import Action, Expand, Initialize, Search, Terminate, Write, write_action
from stages.agent.report.episode import ReportEnvironment, ReportEpisode, step_trajectories
from stages.agent.report.gather import MOST_GATHERED, Gather
from stages.agent.report.judge import REPORT
from stages.agent.report.judge_rule import RuleJudge
from stages.agent.report.scores import Scored, means, tables
from stages.agent.report.state import Limits
from stages.agent.report.view import View, markdown, prompt
from stages.artifacts import Dataset
from tests.agent.library import OVEN, STEAM, TOPIC, after
from tests.agent.world import make_index

BEGIN = Initialize(("Rye bread", "Pumpernickel"))
OVENS = Search(("oven",))
WHOLE: tuple[Action, ...] = (
    BEGIN,
    OVENS,
    Write("The oven was heated in Soest [6]."),
    Search(("steam",)),
    Write("Steam darkens it [7]."),
    Terminate(),
)


def said(action: Action | str) -> str:
    return write_turn("So.", action if isinstance(action, str) else write_action(action))


def new(**options: int) -> ReportEpisode:
    return ReportEpisode(TOPIC, RuleJudge(), Limits(**options), View())


def written(turns: Sequence[str], episode: ReportEpisode | None = None) -> ReportEpisode:
    """An episode after turns, whose searches find two documents."""
    episode = episode or new()
    for turn in turns:
        if episode.write(turn):
            episode.observe(Observation(json.dumps([[one.id, one.title, one.text] for one in (OVEN, STEAM)])))
    return episode


def test_a_report_ends_when_it_is_terminated() -> None:
    episode = written([said(action) for action in WHOLE])
    assert (episode.ending, episode.over, episode.state.finished) == ("answer", True, True)
    assert episode.counts == {"turns": 6, "calls": 2}
    assert [step.action for step in episode.steps] == list(WHOLE)
    found = episode.trajectory()
    assert found.reward == episode.value() > 0
    assert [message.role for message in found.messages] == ["system", "user", "assistant"] * 6
    assert found.answer == "terminate"
    assert [len(conversation) for conversation in episode.conversations] == [3] * 6
    steps = step_trajectories(TOPIC, episode.steps, 0.5)
    assert [step.kind for step in steps] == ["initialize", "search", "write", "search", "write", "terminate"]
    assert [step.messages for step in steps] == [tuple(conversation) for conversation in episode.conversations]
    assert episode.rows(found) == step_trajectories(TOPIC, episode.steps, found.reward)


def test_what_is_not_terminated_is_worth_nothing() -> None:
    episode = written([said(action) for action in WHOLE[:-1]])
    episode.stop("window")
    assert episode.value() > 0
    assert episode.trajectory().reward == 0
    assert Scored.of(episode, RuleJudge(), 9).score == 0


@pytest.mark.parametrize(
    ("turn", "kind", "why"),
    [
        ("no form", "malformed", "no <think>…</think> comes first"),
        ('<think>x</think><tool_call>{"name": "gather", "arguments": {}}</tool_call>', "refused", "there are no tools"),
        (said("dance"), "refused", "'dance' is no action"),
        (said(Terminate()), "refused", "terminate is not possible now; possible: initialize"),
        (said(Initialize(("a",))), "refused", "1 titles below initialize"),
    ],
)
def test_a_turn_that_is_refused_is_told_and_counted(turn: str, kind: str, why: str) -> None:
    episode = written([turn])
    assert episode.counts == {"turns": 1, kind: 1}
    assert not episode.over
    assert f"Refused: {why}" in episode.messages[-1].content
    assert episode.state == new().state, "nothing has happened"
    (step,) = episode.steps
    assert step.action is None
    assert step_trajectories(TOPIC, [step], 0)[0].kind == "refused"
    written([said(BEGIN)], episode)
    assert "Refused" not in episode.messages[-1].content, "it is told once"


def test_the_third_refusal_ends_it() -> None:
    episode = written(["x", said(Terminate()), said(BEGIN), "x"])
    assert (episode.ending, episode.counts["malformed"], episode.counts["refused"]) == ("turns", 2, 1)
    assert episode.trajectory().reward == 0


def test_out_of_actions_it_ends() -> None:
    episode = written([said(BEGIN), said(OVENS)], new(steps=2))
    assert (episode.ending, episode.state.finished) == ("turns", False)


@pytest.mark.parametrize(
    ("observation", "count"),
    [(Observation("Error: late", "timeout"), "failed_timeout"), (Observation('[[1, "Rye br'), "failed_error")],
)
def test_a_search_that_fails_has_found_nothing(observation: Observation, count: str) -> None:
    episode = written([said(BEGIN)])
    assert episode.write(said(OVENS))
    episode.observe(observation)
    assert episode.counts[count] == 1
    assert "Found: nothing" in episode.messages[-1].content
    assert "Next: write" in episode.messages[-1].content


def test_a_report_that_says_tags_of_the_format_is_a_malformed_turn() -> None:
    episode = written([said(BEGIN), said(OVENS), "<think>x</think>\n<answer>write\n</answer></answer>"])
    assert episode.counts["malformed"] == 1


def test_the_prompt_shows_the_state_and_what_is_possible() -> None:
    limits, view = Limits(), View(draft=20)

    def shown(*taken: object) -> str:
        system, user = prompt(after(*taken), limits, view)
        assert system.role == "system"
        return user.content

    found = (OVENS, (OVEN, STEAM))
    assert shown() == f"Report: {TOPIC.query}\n\nNext: initialize, and 2 to 7 titles of sections below."
    assert shown(BEGIN).endswith("Next: search, and up to 3 queries below, for section 1 Rye bread.")
    writing = shown(BEGIN, found, Write("The oven was heated in Soest [6]."), found)
    assert "So far: …heated in Soest [6]." in writing
    assert f"[6] {OVEN.title}: {OVEN.text}" in writing
    assert writing.endswith("the text of section 2 Pumpernickel below; cite documents as [12].")
    deciding = shown(BEGIN, found, Write("The oven was heated in Soest [6]."), found, Write("Steam darkens it [6]."))
    assert "says: The oven was heated…" in deciding
    assert "unused: [7] Steam baking" in deciding
    assert "unused: [6]" not in deciding
    assert deciding.endswith("Next: expand NUMBER (1, 2), and 2 to 7 titles below; or terminate.")


def test_markdown_numbers_sections_and_lists_what_is_cited() -> None:
    found = (OVENS, (OVEN, STEAM))
    taken = (BEGIN, found, Write("One [6]."), found, Write("Two [6] [99]."), Expand("2", ("Ovens", "Doors")))
    text = markdown(after(*taken, found, Write("Three [7].")))
    assert text.startswith("# Rye bread and Pumpernickel\n\n## 1 Rye bread\n\nOne [6].\n")
    assert "### 2.1 Ovens\n\nThree [7]." in text
    assert text.endswith("## Sources\n\n- [6] Westphalian oven\n- [7] Steam baking\n")


def test_figures_count_what_was_written() -> None:
    whole = written([said(action) for action in WHOLE])
    cut = written(["x", said(BEGIN), said(OVENS), said(Write("Three words here [6] [99].")), "x", "x"])
    scored = [Scored.of(episode, RuleJudge(), 10 * len(episode.steps)) for episode in (whole, cut)]
    figures = scored[1].figures
    assert (figures["finished"], figures["score"], figures["recall"], figures["unfounded"]) == (0, 0, 1 / 4, 1)
    assert (figures["words"], figures["sections"], figures["actions"], figures["malformed"]) == (3, 1, 3, 3)
    assert scored[0].figures["score"] == pytest.approx(whole.value())
    assert set(REPORT) <= set(figures)
    found = means(scored)
    assert found["finished"] == 0.5
    assert found["tokens"] == 60
    assert found["score_stderr"] == pytest.approx(whole.value() / 2)
    assert means(scored[:1])["score_stderr"] == 0
    told = tables(scored)
    assert told["endings"] == {"answer": 1, "turns": 1}
    assert told["actions_taken"] == {"initialize": 2, "search": 3, "write": 3, "terminate": 1}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    long = [f"Long {number} -- The long tale {number} " + "and so on " * 900 for number in range(4)]
    return make_index(tmp_path_factory.mktemp("shelf"), [*long, 'Quote -- "Said" so\n\t\\ once \x01 more.'])


def test_a_search_brings_the_best_of_each_query_in_turn(shelf: Dataset) -> None:
    gather = Gather(Collection(shelf.path), results=3, characters=20)
    (first, *_), (quote,) = gather.find(["tale"]), gather.find(["said"])
    found = gather.find(["tale", "said"])
    assert (found[0], found[1], len(found)) == (first, quote, 3)
    assert first.text == "The long tale 0 and…"
    assert gather.find(["qxz", ""]) == []


def test_footnotes_of_a_document_are_no_citations(tmp_path: Path) -> None:
    index = make_index(
        tmp_path, ["Rye -- Rye was first sown in Anatolia [1], then in\nEurope.[23] It is hardy [3].", "X -- y."]
    )
    (found,) = Gather(Collection(index.path)).find(["rye"])
    assert found.text == "Rye was first sown in Anatolia, then in Europe. It is hardy."


def test_what_it_brings_survives_the_way_and_stays_small(shelf: Dataset) -> None:
    gather = Gather(Collection(shelf.path), results=5, characters=10**6)
    environment = ReportEnvironment({"gather": gather}, [TOPIC], RuleJudge())
    episode = environment.episode(environment.tasks[0], TurnLimits())
    with Toolbox(environment.tools) as tools:
        play([episode], scripted([said(BEGIN), said(Search(("tale", "said"))), "x", "x", "x"]), tools)
    assert episode.state.due is not None
    found = episode.state.due[1].evidence
    assert found == tuple(gather.find(["tale", "said"]))
    assert len(found) == 5
    assert sum(len(one.text) for one in found) <= MOST_GATHERED + 5


def test_the_environment_rewards_the_end_and_nothing_else() -> None:
    environment = ReportEnvironment({}, [TOPIC], RuleJudge())
    (task,) = environment.tasks
    assert (task.id, task.question, task.kind) == (TOPIC.id, TOPIC.query, "report")
    assert environment.prompt(task) == tuple(new().messages)
    assert environment.success(task, "terminate", 0.4)
    assert not environment.success(task, write_action(BEGIN), 1.0)
