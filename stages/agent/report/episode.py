"""One report being written, as an episode of the loop that all agents share (`stages.agent.environment.episodes.play`).

Every action is asked for in a conversation of its own: the prompt shows the state, not how it came about. So a report
of any length is written in a window of fixed size, and each action is an example by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stages.agent.conversation.messages import FAULTS, Ending, Message, ToolCall, Trajectory, parse_turn
from stages.agent.environment.base import Environment, Observation, Task, Tool
from stages.agent.environment.episodes import Limits as TurnLimits
from stages.agent.report.actions import Action, ActionError, Search, parse_action
from stages.agent.report.gather import Gather, gathered
from stages.agent.report.judge import REPORT, Draft, Judge
from stages.agent.report.state import Evidence, Limits, State, advanced, possible
from stages.agent.report.topics import Topic
from stages.agent.report.view import View, prompt


@dataclass(frozen=True)
class Step:
    """One turn: what was asked in which state, what was said, and what came of it."""

    state: State
    """Before the turn."""
    asked: tuple[Message, ...]
    said: Message
    action: Action | None = None
    """None where the turn was refused."""
    found: tuple[Evidence, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turn as a conversation."""
        return *self.asked, self.said


@dataclass
class ReportEpisode:
    """A report on a topic. What a model writes is data: what is no possible action is refused, told and counted."""

    topic: Topic
    judge: Judge
    limits: Limits
    view: View
    refusals: int = 3
    """Turns refused after which it ends."""
    state: State = field(init=False)
    steps: list[Step] = field(default_factory=list)
    ending: Ending = ""
    counts: Counter[str] = field(default_factory=Counter)
    """`turns`, `calls` (searches), `malformed`, `refused` (well-formed, not possible), `failed_<failure>`."""
    _refusal: str = ""
    _searching: tuple[Search, Step] | None = None

    def __post_init__(self) -> None:
        self.state = State(self.topic.query)

    @property
    def over(self) -> bool:
        """Whether nothing more is asked."""
        return bool(self.ending)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt for the next action."""
        return prompt(self.state, self.limits, self.view, self._refusal)

    @property
    def conversations(self) -> list[tuple[Message, ...]]:
        """One for each turn so far."""
        return [step.messages for step in self.steps]

    def write(self, content: str, token_ids: Sequence[int] = ()) -> ToolCall | None:
        """Take the writer's turn; a search is returned as a call and waits for `observe`."""
        assert not self.over, "the report is over"
        step = Step(self.state, self.messages, Message("assistant", content, tuple(token_ids)))
        self.counts["turns"] += 1
        try:
            action = _read(content)
            after = advanced(self.state, action, self.limits)
        except ActionError as refusal:
            self._refuse(step, str(refusal), malformed=parse_turn(content).fault is not None)
            return None
        if isinstance(action, Search):
            self.counts["calls"] += 1
            self._searching = action, step
            return ToolCall(Gather.name, {"queries": "\n".join(action.queries)})
        self._take(step, action, after)
        return None

    def observe(self, observation: Observation) -> None:
        """Take what the search found; a search that failed has found nothing."""
        assert self._searching is not None, "no search waits for an observation"
        (action, step), self._searching = self._searching, None
        found = gathered(observation)
        if found is None:
            self.counts[f"failed_{observation.failure or 'error'}"] += 1
        self._take(step, action, advanced(self.state, action, self.limits, found or ()), found or ())

    def stop(self, ending: Ending) -> None:
        """End it from outside."""
        self.ending = ending

    def trajectory(self) -> Trajectory:
        """All turns, a conversation each, one behind the other; a report that nobody terminated is worth nothing."""
        messages = tuple(message for conversation in self.conversations for message in conversation)
        reward = self.value() if self.state.finished else 0.0
        return Trajectory(self.topic.id, messages, reward, self.ending, self.topic.query, (), "report")

    def rows(self, whole: Trajectory) -> list[Trajectory]:
        """A trajectory for each turn, see `step_trajectories`."""
        return step_trajectories(self.topic, self.steps, whole.reward)

    def value(self) -> float:
        """What the judge thinks of the report as it is, in [0, 1]."""
        return self.judge.value(Draft(self.topic, self.state), REPORT)

    def _take(self, step: Step, action: Action, after: State, found: tuple[Evidence, ...] = ()) -> None:
        self.steps.append(Step(step.state, step.asked, step.said, action, found))
        self.state, self._refusal = after, ""
        if after.finished:
            self.ending = "answer"
        elif not possible(after, self.limits):
            self.ending = "turns"

    def _refuse(self, step: Step, why: str, *, malformed: bool) -> None:
        self.counts["malformed" if malformed else "refused"] += 1
        self.steps.append(step)
        self._refusal = why
        if self.counts["malformed"] + self.counts["refused"] >= self.refusals:
            self.ending = "turns"


def step_trajectories(topic: Topic, steps: Sequence[Step], reward: float) -> list[Trajectory]:
    """The steps of a report that is worth `reward`, a conversation of one turn each: what `agent.sft` learns from.

    The kind of each is its action's name, `refused` where there was none.
    """
    return [
        Trajectory(
            task=f"{topic.id}-{place}",
            messages=step.messages,
            reward=reward,
            ending="answer" if step.action else "",
            question=topic.query,
            kind=step.action.name if step.action else "refused",
        )
        for place, step in enumerate(steps)
    ]


@dataclass(frozen=True)
class ReportEnvironment(Environment):
    """Whole reports on topics over a collection; their reward is the judge's."""

    tools: Mapping[str, Tool]
    topics: Sequence[Topic]
    judge: Judge
    limits: Limits = field(default_factory=Limits)
    view: View = field(default_factory=View)

    @property
    def tasks(self) -> Sequence[Task]:
        """The topics."""
        return [Task(topic.id, topic.query, (), kind="report") for topic in self.topics]

    def episode(self, task: Task, limits: TurnLimits) -> ReportEpisode:  # noqa: ARG002, a report has limits of its own
        """A report that has not begun."""
        topic = next(topic for topic in self.topics if topic.id == task.id)
        return ReportEpisode(topic, self.judge, self.limits, self.view)

    def prompt(self, task: Task) -> tuple[Message, ...]:
        """What the first action is asked with."""
        return prompt(State(task.question), self.limits, self.view)

    def reward(self, task: Task, answer: str) -> float:  # noqa: ARG002, the same of every topic
        """Of the last turn: 1 for terminating. What the report is worth is its trajectory's reward."""
        return float(answer == "terminate")

    def success(self, task: Task, answer: str, reward: float) -> bool:  # noqa: ARG002, however good the report is
        """Whether the writer terminated the report."""
        return answer == "terminate"


def _read(content: str) -> Action:
    turn = parse_turn(content)
    if turn.answer is None:
        raise ActionError(FAULTS[turn.fault] if turn.fault else "there are no tools: the action is the answer")
    return parse_action(turn.answer)
