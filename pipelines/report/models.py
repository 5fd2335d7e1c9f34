"""The table of a run's models, from teacher to final model: one row each, one column for each figure. Pure.

A stage that makes nothing but reports, and trajectories of what a model did, and reads exactly one model measures it;
where it reads others to compare with (`parent`, `baseline`), it measures the one that is left. Distances also come from
the stage that made the model.
Figures share a column only when they were measured alike: by the same method, parameters and data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, TypeVar

from pipelines.report.values import Link, StageReport
from pipelines.spec.matrix import stage_base

T = TypeVar("T")
FACTS: Final = ("parameters", "bytes")
"""True of a model whoever says so: no protocol keeps them apart."""
DISTANCES: Final = ("perplexity", "bits_per_byte", "kl_to_parent", "perplexity_ratio", "top1_agreement")
"""In this order, before all else that evaluations measured. Only these are taken from a model's maker."""
PARENTS: Final = frozenset({"parent", "teacher"})
"""Inputs that a model is measured against: each against its own, in one column."""
REFERENCES: Final = PARENTS | {"baseline", "judge", "reference"}
"""Inputs that a stage does not measure when it reads another model as well."""
ASIDE: Final = re.compile(
    r"^(?:baseline|parent|teacher|child)_|^byte_perplexity$|_\d+$"
    r"|(?:^|[_/])(?:num|tokens|windows|samples|items|documents|requests|layers|seed|limit|length|seconds|stderr|p99|nll)"
    r"(?:$|[_/])"
)
"""Figures about another model, about a part of what was measured (`accuracy_2048`), or about how; they stand with their
stage.
"""


@dataclass(frozen=True)
class Column:
    """A metric; `by` names the stages that measured it where several did, each in its own way."""

    metric: str
    by: str = ""
    source: str = ""
    """The stages that measured it, whether or not there are others."""


@dataclass(frozen=True)
class ModelRow:
    """A model and its figures, None where nobody measured."""

    name: str
    link: Link
    state: str
    cells: tuple[float | None, ...]


@dataclass(frozen=True)
class ModelTable:
    """The models in the order in which they come to be; no rows when a run makes none."""

    columns: tuple[Column, ...] = ()
    rows: tuple[ModelRow, ...] = ()


@dataclass
class _Source:
    """Figures measured alike, by metric and then by model (`stage.output`)."""

    label: str
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)

    def add(self, model: str, metric: str, value: float) -> None:
        self.figures.setdefault(metric, {})[model] = value


def model_table(stages: Sequence[StageReport]) -> ModelTable:
    """The table of the models that `stages` made."""
    models = {link.origin: (stage, link) for stage in stages for link in stage.outputs if link.kind == "model"}
    if not models:
        return ModelTable()
    evaluations, makers = _evaluations(stages), _makers(stages)
    facts = _facts(evaluations, makers, {origin: link.weights for origin, (_, link) in models.items()})
    found = [(Column(metric), values) for metric, values in facts.items() if values]
    for metric in _metrics(evaluations, makers):
        found += _columns(metric, evaluations, makers)
    rows = [
        ModelRow(_label(stage, link), link, stage.state, tuple(values.get(origin) for _, values in found))
        for origin, (stage, link) in models.items()
    ]
    return ModelTable(tuple(column for column, _ in found), tuple(rows))


def subject(stage: StageReport) -> Link | None:
    """The model that a stage measures, None when that is nothing or not certain."""
    if any(link.kind != "report" and link.schema != "trajectories" for link in stage.outputs):
        return None
    return measured([link for link in stage.inputs if link.kind == "model"], attrgetter("name"))


def measured(models: Sequence[T], name_of: Callable[[T], str]) -> T | None:
    """Which of the models that an evaluation reads it measures: the only one, or the only one that is not there to be
    compared with, by the names of its inputs. None when that is not certain.
    """
    found = models if len(models) == 1 else [model for model in models if name_of(model) not in REFERENCES]
    return found[0] if len(found) == 1 else None


def _evaluations(stages: Sequence[StageReport]) -> list[_Source]:
    sources: dict[str, _Source] = {}
    for stage in stages:
        if stage.metrics and (model := subject(stage)) is not None:
            protocol = _protocol(stage, model)
            while model.origin in sources.get(protocol, _Source("")).models:
                protocol += "again"
            source = sources.setdefault(protocol, _Source(stage_base(stage.name)))
            source.models.add(model.origin)
            for metric, value in stage.metrics.items():
                source.add(model.origin, metric, value)
    return _told_apart(list(sources.values()))


def _protocol(stage: StageReport, model: Link) -> str:
    """What has to be the same for two figures to be comparable."""
    others = [f"{link.name}={link.origin}" for link in stage.inputs if link != model and link.name not in PARENTS]
    return json.dumps([stage.uses, stage.params, others], sort_keys=True, default=str)


def _told_apart(sources: list[_Source]) -> list[_Source]:
    """Number the sources that would carry one label."""
    for label in {source.label for source in sources}:
        alike = [source for source in sources if source.label == label]
        for number, source in enumerate(alike, start=1):
            source.label = f"{label} ({number})" if len(alike) > 1 else label
    return sources


def _makers(stages: Sequence[StageReport]) -> _Source:
    source = _Source("when made")
    for stage in stages:
        made = [link for link in stage.outputs if link.kind == "model"]
        if len(made) == 1:
            for metric in (*FACTS, *DISTANCES):
                if metric in stage.metrics:
                    source.add(made[0].origin, metric, stage.metrics[metric])
    return source


def _facts(evaluations: list[_Source], makers: _Source, weights: dict[str, int]) -> dict[str, dict[str, float]]:
    """Parameters from whoever knows them; bytes as the store has them, for every model alike."""
    parameters: dict[str, float] = {}
    for source in (makers, *evaluations):
        parameters |= source.figures.get("parameters", {})
    return {"parameters": parameters, "bytes": {origin: float(size) for origin, size in weights.items() if size}}


def _metrics(evaluations: list[_Source], makers: _Source) -> list[str]:
    known = dict.fromkeys(metric for source in (*evaluations, makers) for metric in source.figures)
    rest = [name for name in known if name not in (*FACTS, *DISTANCES) and not ASIDE.search(name)]
    rest = [name for name in rest if f"{name}_ratio" not in known]
    return [*(name for name in DISTANCES if name in known), *rest]


def _columns(metric: str, evaluations: list[_Source], makers: _Source) -> Iterator[tuple[Column, dict[str, float]]]:
    """One column for each way the metric was measured; the makers' only for models that nobody evaluated."""
    sources = [source for source in evaluations if metric in source.figures]
    evaluated = {model for source in sources for model in source.figures[metric]}
    if set(makers.figures.get(metric, {})) - evaluated:
        sources.append(makers)
    for source in sources:
        yield Column(metric, source.label if len(sources) > 1 else "", source.label), source.figures[metric]


def _label(stage: StageReport, link: Link) -> str:
    several = sum(other.kind == "model" for other in stage.outputs) > 1
    return link.origin if several else stage.name
