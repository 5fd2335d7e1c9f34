"""Tools that hang, raise or are asked for nonsense; episodes and their ends; environments that prove themselves."""

from __future__ import annotations

import pytest

from stages.agent.conversation.messages import Message, ToolCall, write_turn
from stages.agent.environment.base import Observation, Task, system_prompt
from stages.agent.environment.episodes import GARBAGE, Episode, Limits, play, prove, scripted
from stages.agent.environment.toolbox import MOST_CHARACTERS, Toolbox
from tests.agent.world import Echo, Hang, Parrot, Raise

ECHO = ToolCall("echo", {"text": "hi"})


@pytest.fixture
def toolbox():
    with Toolbox({"echo": Echo(), "hang": Hang(), "raise": Raise()}) as found:
        yield found


@pytest.mark.parametrize(
    ("call", "failure", "says"),
    [
        (ToolCall("raise", {"text": "value"}), "arguments", "no such thing"),
        (ToolCall("raise", {"text": "key"}), "error", "KeyError"),
        (ToolCall("raise", {"text": "exit"}), "error", "RuntimeError"),
        (ToolCall("python", {"code": "1"}), "unknown", "there are echo, hang, raise"),
        (ToolCall("echo", {}), "arguments", "echo takes the arguments text"),
        (ToolCall("echo", {"text": "a", "more": 1}), "arguments", "echo takes"),
        (ToolCall("echo", {"text": ["a"]}), "arguments", "text or a number"),
        (ToolCall("echo", {"text": True}), "arguments", "text or a number"),
    ],
)
def test_a_tool_that_fails_is_told_about(toolbox, call, failure, says):
    before, found, after = toolbox.call([ECHO, call, ECHO])
    assert before == after == Observation("hi"), "the others are as ever"
    assert found.failure == failure
    assert says in found.text


def test_a_tool_that_hangs_is_left_behind(toolbox):
    toolbox.timeout = 0.2
    found = toolbox.call([ECHO, ToolCall("hang", {"text": ""})])[1]
    assert found == Observation("Error: hang did not answer within 0.2 s.", "timeout")
    toolbox.timeout = 30
    assert toolbox.call([ECHO]) == [Observation("hi")]


def test_what_a_tool_says_is_cut(toolbox):
    (found,) = toolbox.call([ToolCall("echo", {"text": "x" * (MOST_CHARACTERS + 1)})])
    assert len(found.text) == MOST_CHARACTERS


def episode(limits=Limits(3)) -> Episode:  # noqa: B008, it is frozen
    environment = Parrot()
    return Episode(environment, environment.tasks[0], limits)


def test_an_answer_ends_it_and_is_rewarded(toolbox):
    asked = episode()
    (found,) = play([asked], scripted([write_turn("I ask.", ECHO), write_turn("So.", "tree")]), toolbox)
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert (found.reward, found.ending, found.answer) == (1.0, "answer", "tree")
    assert asked.counts == {"turns": 2, "calls": 1}


def test_malformed_turns_are_answered_and_counted(toolbox):
    asked = episode()
    (found,) = play([asked], scripted(["tree", write_turn("", ToolCall("fly")), write_turn("", "tree")]), toolbox)
    assert asked.counts == {"turns": 3, "malformed": 1, "calls": 1, "failed_unknown": 1}
    assert "no <think>" in found.messages[3].content
    assert "there is no tool 'fly'" in found.messages[5].content
    assert found.reward == 1


@pytest.mark.parametrize("turn", [write_turn("", ECHO), "nonsense"])
def test_it_ends_when_the_turns_are_used_up(toolbox, turn):
    asked = episode(Limits(2))
    (found,) = play([asked], scripted([turn] * 2), toolbox)
    assert (found.ending, found.reward, found.answer) == ("turns", 0.0, None)
    assert asked.counts["calls"] == (turn != "nonsense"), "the call of the last turn never ran"
    assert found.messages[-1].role == "assistant", "nobody is left to read a result"


def test_it_ends_without_room(toolbox):
    (found,) = play([episode()], lambda live: [None for _ in live], toolbox)
    assert (found.ending, found.reward) == ("window", 0.0)
    assert len(found.messages) == 2


def test_episodes_of_different_length_run_side_by_side(toolbox):
    environment = Parrot()
    episodes = [Episode(environment, task) for task in environment.tasks]
    scripts = {
        environment.tasks[0].id: [write_turn("", ECHO), write_turn("", ECHO), write_turn("", "tree")],
        environment.tasks[1].id: [write_turn("", "stone")],
    }
    batches = []

    def write(live):
        batches.append(len(live))
        return [Message("assistant", scripts[e.task.id][e.counts["turns"]]) for e in live]

    assert [t.reward for t in play(episodes, write, toolbox)] == [1, 1]
    assert batches == [2, 1, 1]


def test_an_environment_in_order_proves_itself(toolbox):
    assert prove(Parrot(), toolbox) == []


class Generous(Parrot):
    def reward(self, task: Task, answer: str) -> float:
        return 1.0


class Stingy(Parrot):
    def reward(self, task: Task, answer: str) -> float:
        return 0.9 * super().reward(task, answer)


def test_one_that_is_not_is_found_out(toolbox):
    assert len(prove(Generous(), toolbox)) == 2 * sum("<answer>" in text and "<think>" in text for text in GARBAGE)
    assert "gets 0.9" in prove(Stingy(), toolbox)[0]
    broken = Parrot()
    broken.tools = {}
    assert "failed_unknown" in prove(broken, Toolbox({}))[0]


def test_the_prompt_names_tools_and_form():
    prompt = system_prompt(Parrot().tools)
    assert "- echo(text): say it again" in prompt
    assert "<tool_call>" in prompt
    assert "<answer>" in prompt
