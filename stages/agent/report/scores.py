"""What reports are worth and what they took: figures of one, and means over many. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.agent.evaluate.scores import standard_error
from stages.agent.report.episode import ReportEpisode
from stages.agent.report.judge import REPORT, Criterion, Draft, Judge
from stages.agent.report.view import citations, without_citations


@dataclass(frozen=True)
class Scored:
    """A report that is over, with its ratings and the tokens that were written for it."""

    episode: ReportEpisode
    ratings: Mapping[Criterion, float]
    """By criterion, 1 to 5, of the report as it stands; also of one that nobody terminated."""
    tokens: int

    @classmethod
    def of(cls, episode: ReportEpisode, judge: Judge, tokens: int) -> Scored:
        """Rate a report."""
        return cls(episode, judge.rate(Draft(episode.topic, episode.state), REPORT), tokens)

    @property
    def score(self) -> float:
        """The mean rating brought to [0, 1], 0 for a report that nobody terminated: what RL rewards."""
        mean = math.fsum(self.ratings.values()) / len(self.ratings)
        return (mean - 1) / 4 if self.episode.state.finished else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """All that is counted of it."""
        state, counts, golden = self.episode.state, self.episode.counts, self.episode.topic.golden
        texts = [section.text for _, section in state.walk() if section.text]
        cited = {document for text in texts for document in citations(text)}
        found = {one.id for _, section in state.walk() for one in section.evidence or ()}
        return {
            "score": self.score,
            **self.ratings,
            "finished": float(state.finished),
            "recall": len(cited & golden) / len(golden),
            "unfounded": float(len(cited - found)),
            "sections": float(len(texts)),
            "words": float(sum(len(without_citations(text).split()) for text in texts)),
            "expansions": float(state.expansions),
            "actions": float(state.steps),
            "refused": float(counts["refused"]),
            "malformed": float(counts["malformed"]),
            "failed_calls": float(sum(number for name, number in counts.items() if name.startswith("failed_"))),
            "tokens": float(self.tokens),
        }

    @property
    def row(self) -> dict[str, Any]:
        """For the table of a report."""
        return {"question": self.episode.topic.query, "ending": self.episode.ending, **self.figures}


def means(scored: Sequence[Scored]) -> dict[str, float]:
    """Means over reports, and the standard error of the mean score; 0 for a single report."""
    rows = [one.figures for one in scored]
    found = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    return {**found, "score_stderr": standard_error([row["score"] for row in rows])}


def tables(scored: Sequence[Scored]) -> dict[str, Any]:
    """Every report by its topic, how they ended, and how often each action was taken."""
    actions = Counter[str](step.action.name for one in scored for step in one.episode.steps if step.action)
    return {
        "reports": {one.episode.topic.id: one.row for one in scored},
        "endings": dict(Counter[str](one.episode.ending for one in scored)),
        "actions_taken": dict(actions),
    }
