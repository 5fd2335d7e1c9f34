"""Opening what a writer of reports acts in: whole reports on topics, or exercises."""

from __future__ import annotations

from stages.agent.environment.base import Environment
from stages.agent.environment.research import ToolSettings, open_collection
from stages.agent.report.episode import ReportEnvironment
from stages.agent.report.exercises import ExerciseEnvironment
from stages.agent.report.gather import Gather
from stages.agent.report.judge import Judge
from stages.agent.report.judge_rule import RuleJudge
from stages.agent.report.records import holds_topics, read_exercises, read_topics
from stages.agent.report.rules import Rules
from stages.artifacts import Dataset, Model


def open_reports(index: Dataset, topics: Dataset, judge: Model | None = None) -> ReportEnvironment:
    """Reports on `topics` over `index`. Raises UserError for another dataset, or an index that is damaged."""
    rules, gather = Rules.read(topics), _gather(index, topics)
    tools = {gather.name: gather}
    return ReportEnvironment(tools, read_topics(topics), make_judge(judge), rules.limits, rules.view)


def open_exercises(index: Dataset, exercises: Dataset, judge: Model | None = None) -> ExerciseEnvironment:
    """Exercises over `index`. Raises UserError for another dataset, or an index that is damaged."""
    rules = Rules.read(exercises)
    gather = _gather(index, exercises)
    return ExerciseEnvironment(read_exercises(exercises), gather, make_judge(judge), rules.limits, rules.text)


def open_tasks(index: Dataset, tasks: Dataset, judge: Model | None = None) -> Environment:
    """Whichever of the two `tasks` are."""
    return (open_reports if holds_topics(tasks) else open_exercises)(index, tasks, judge)


def make_judge(model: Model | None) -> Judge:
    """The model as judge; without one, the judge by rule."""
    if model is None:
        return RuleJudge()
    from stages.agent.report.judge_model import load_judge

    return load_judge(model)


def _gather(index: Dataset, tasks: Dataset) -> Gather:
    """The search of an index as the rules of the tasks want it."""
    settings = ToolSettings.read(index.path)
    return Gather(open_collection(index.path), Rules.read(tasks).documents, settings.characters)
