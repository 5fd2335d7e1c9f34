"""A scripted expert, so that a writer of reports can be taught without a larger model: it knows the topic's checklist.

It quotes what it finds and cites it. Where it decides it deepens first what the checklist deepens, then, forced like
the paper's teacher, whatever has documents left that it did not use; `pruned` cuts its work at the best draft.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from stages.agent.conversation.messages import TAGS, Message, Trajectory, write_turn
from stages.agent.environment.answers import normalise
from stages.agent.environment.base import Runner
from stages.agent.environment.episodes import Limits as TurnLimits
from stages.agent.environment.episodes import play
from stages.agent.questions.facts import plain_title, sentences
from stages.agent.report.actions import Action, Expand, Initialize, Search, Terminate, Write, write_action
from stages.agent.report.episode import ReportEnvironment, ReportEpisode, Step, step_trajectories
from stages.agent.report.judge import REPORT, Draft, Judge
from stages.agent.report.pruning import cut_at
from stages.agent.report.state import Evidence, Limits, Section, State, expandable, possible
from stages.agent.report.topics import Topic
from stages.agent.report.view import unused

QUOTED: Final = 3
"""Sentences of a section at most."""
BATCH: Final = 32
DECISIONS: Final = (Expand, Terminate)
_TAG: Final = re.compile(rf"</?(?:{'|'.join(TAGS)})>")


@dataclass(frozen=True)
class Work:
    """What the expert did on a topic, cut at the best draft."""

    topic: Topic
    steps: tuple[Step, ...]
    """The last of them terminates."""
    scores: tuple[float, ...]
    """Of the drafts, before each decision of the uncut work."""
    num_forced: int
    """Steps of the uncut work."""

    @property
    def report(self) -> State:
        """The report as it was cut."""
        return self.steps[-1].state

    @property
    def score(self) -> float:
        """Of that report."""
        return self.scores[self.report.expansions]

    def trajectories(self) -> list[Trajectory]:
        """A conversation of one turn for each step."""
        return step_trajectories(self.topic, self.steps, self.score)


def work(
    environment: ReportEnvironment, tools: Runner, margin: float, progress: Callable[[float, float, str], None]
) -> list[Work]:
    """The expert's work on every topic on which it came to a decision within the limits."""
    found: list[Work] = []
    tasks = environment.tasks
    for start in range(0, len(tasks), BATCH):
        episodes = [environment.episode(task, TurnLimits()) for task in tasks[start : start + BATCH]]
        play(episodes, _write, tools)
        decided = (episode for episode in episodes if any(isinstance(step.action, DECISIONS) for step in episode.steps))
        found += [pruned(episode, environment.judge, margin) for episode in decided]
        progress(start + len(episodes), len(tasks), "reports")
    return found


def pruned(episode: ReportEpisode, judge: Judge, margin: float = 0.0) -> Work:
    """The episode up to its best draft, where it terminates."""
    steps = episode.steps
    decisions = [place for place, step in enumerate(steps) if isinstance(step.action, DECISIONS)]
    scores = [judge.value(Draft(episode.topic, steps[place].state), REPORT) for place in decisions]
    end = cut_at(decisions, scores, margin)
    content = _turn("Nothing is left to deepen.", Terminate())
    last = replace(steps[end], said=Message("assistant", content), action=Terminate(), found=())
    return Work(episode.topic, (*steps[:end], last), tuple(scores), len(steps))


def act(topic: Topic, state: State, limits: Limits) -> tuple[str, Action]:
    """The expert's thought and action."""
    if "initialize" in possible(state, limits):
        return "The question names the sections.", Initialize(tuple(_line(item.title) for item in topic.aspects))
    if state.due is None:
        return _decide(topic, state, limits)
    _, section = state.due
    if section.evidence is None:
        return "I look for the title.", Search((plain_title(section.title),))
    source = _source(section)
    if source is None:
        return "Nothing was found.", Write(f"The documents say nothing of {section.title}.")
    return f"Document {source.id} is about it.", Write(f"{_quoted(source)} [{source.id}]")


def _write(episodes: Sequence[ReportEpisode]) -> list[Message]:
    return [Message("assistant", _turn(*act(one.topic, one.state, one.limits))) for one in episodes]


def _decide(topic: Topic, state: State, limits: Limits) -> tuple[str, Action]:
    """Deepen the first leaf that the checklist deepens, else the first with enough unused documents, else terminate."""
    leaves, options = dict(state.leaves()), expandable(state, limits)
    known = {normalise(section.title) for _, section in state.walk()}
    for forced in (False, True):
        for number in options:
            about = topic.about(leaves[number].title)
            wanted = [item.title for item in topic.deeper(about.document)] if about else []
            if wanted or forced:
                left = [*wanted, *(found.title for found in unused(state, leaves[number]))]
                titles = list({normalise(one): _line(one) for one in left if normalise(one) not in known}.values())
                if len(titles) >= limits.fewest:
                    kept = titles[: max(limits.fewest, len(wanted))][: limits.most]
                    return f"Section {number} leaves documents unused.", Expand(number, tuple(kept))
    return "Nothing is left to deepen.", Terminate()


def _source(section: Section) -> Evidence | None:
    """The document found that has the section's title, else the best."""
    found = section.evidence or ()
    same = (one for one in found if normalise(one.title) == normalise(section.title))
    return next(same, found[0] if found else None)


def _quoted(source: Evidence) -> str:
    """The first whole sentences of a document as it is shown, without tags of the format."""
    told = sentences(_TAG.sub(" ", source.text))
    whole = [one for one in told if not one.endswith("…")] or told
    return " ".join(whole[:QUOTED])


def _turn(thought: str, action: Action) -> str:
    return write_turn(thought, write_action(action))


def _line(title: str) -> str:
    return " ".join(_TAG.sub(" ", title).split())
