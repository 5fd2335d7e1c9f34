"""Single actions as tasks with a reward each, so that a skill can be learnt by itself (atomic-skill RL, 2602.06540)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stages.agent.conversation.messages import Message
from stages.agent.environment.base import Environment, Task, Tool
from stages.agent.report.actions import (
    Action,
    ActionError,
    Expand,
    Initialize,
    Search,
    Terminate,
    Write,
    parse_action,
    write_action,
)
from stages.agent.report.episode import Step
from stages.agent.report.expert import Work
from stages.agent.report.gather import Gather
from stages.agent.report.judge import Judge
from stages.agent.report.rewards import Skill, TextRules, decision, planning, retrieval, writing
from stages.agent.report.state import Limits, State, advanced
from stages.agent.report.topics import Topic


@dataclass(frozen=True)
class Exercise:
    """One action to take in a given state."""

    id: str
    skill: Skill
    topic: Topic
    state: State
    asked: tuple[Message, ...]
    """The prompt."""
    best: str
    """The action of the pruned trajectory, as an answer."""
    needed: tuple[int, ...] = ()
    """Documents that a search should find: those that the expert's found."""


@dataclass(frozen=True)
class ExerciseEnvironment(Environment):
    """Exercises: one turn each, rewarded by its skill's rule."""

    exercises: Sequence[Exercise]
    gather: Gather
    judge: Judge
    limits: Limits = field(default_factory=Limits)
    rules: TextRules = field(default_factory=TextRules)
    _best: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    """What the expert's own action is worth, by exercise, as far as it was asked for."""

    @property
    def tools(self) -> Mapping[str, Tool]:
        """None: an action is an answer."""
        return {}

    @property
    def tasks(self) -> Sequence[Task]:
        """A task each."""
        return [Task(one.id, one.topic.query, (one.best,), kind=one.skill) for one in self.exercises]

    def prompt(self, task: Task) -> tuple[Message, ...]:
        """The state that the exercise begins in."""
        return self._of(task).asked

    def reward(self, task: Task, answer: str) -> float:
        """What the action is worth; 0 for one that cannot be read or is not possible."""
        one = self._of(task)
        try:
            action = parse_action(answer)
            advanced(one.state, action, self.limits)
        except ActionError:
            return 0.0
        return self._worth(one, action)

    def success(self, task: Task, answer: str, reward: float) -> bool:  # noqa: ARG002, the expert's is what counts
        """Whether it is worth as much as what the expert did."""
        if task.id not in self._best:
            self._best[task.id] = self.reward(task, self._of(task).best)
        return reward >= self._best[task.id]

    def _worth(self, one: Exercise, action: Action) -> float:
        if one.skill == "decision":
            return decision(action, parse_action(one.best))
        match action:
            case Initialize() | Expand():
                return planning(one.topic, one.state, action, self.judge)
            case Search(queries):
                return retrieval(self.gather.find(queries), one.needed)
            case Write(text):
                return writing(one.topic, one.state, text, self.judge, self.rules)
        return 0.0

    def _of(self, task: Task) -> Exercise:
        return next(one for one in self.exercises if one.id == task.id)


def exercises(work: Work, rules: TextRules) -> list[Exercise]:
    """What can be learnt from the expert's work, an exercise for each skill that a step shows.

    An expansion shows two: the decision to deepen that section, and the plan of it. What the expert could not do itself
    is left out: a search that found nothing of what the section needs, a text that is not of the form.
    """
    found: list[Exercise] = []
    for place, step in enumerate(work.steps):
        assert step.action is not None, "the expert is never refused"
        needed = _needed(work.topic, step) if isinstance(step.action, Search) else ()
        if _is_done(step.action, needed, rules):
            for skill in _skills(step.action):
                name, answer = f"{work.topic.id}-{place}-{skill}", write_action(step.action)
                found.append(Exercise(name, skill, work.topic, step.state, step.asked, answer, needed))
    return found


def _is_done(action: Action, needed: tuple[int, ...], rules: TextRules) -> bool:
    match action:
        case Search():
            return bool(needed)
        case Write(text):
            return rules.hold(text)
    return True


def _skills(action: Action) -> tuple[Skill, ...]:
    match action:
        case Initialize():
            return ("planning",)
        case Search():
            return ("retrieval",)
        case Write():
            return ("writing",)
        case Expand():
            return "decision", "planning"
        case Terminate():
            return ("decision",)


def _needed(topic: Topic, step: Step) -> tuple[int, ...]:
    """What the due section is about, its own document and those that deepen it, as far as the expert found it."""
    assert step.state.due is not None, "a search is made where a section is due"
    about = topic.about(step.state.due[1].title)
    wanted = (about.document, *(item.document for item in topic.deeper(about.document))) if about else ()
    found = {one.id for one in step.found}
    return tuple(document for document in wanted if document in found)
