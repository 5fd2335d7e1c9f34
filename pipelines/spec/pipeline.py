"""The typed pipeline that a checked file becomes. Everything here is a frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.spec.document import Path
from pipelines.spec.gate import Gate
from stages.stage import Parameters, Resources, Stage


@dataclass(frozen=True)
class Reference:
    """`stage.output`: one output of one stage instance."""

    stage: str
    output: str

    def __str__(self) -> str:
        return f"{self.stage}.{self.output}"


@dataclass(frozen=True)
class StageSpec:
    """One node of the DAG: a stage of the file, or one arm of its matrix."""

    name: str
    """`student`, or `sweep[learning_rate=0.001]` for an arm of a matrix."""
    slug: str
    """The name made safe for file names; unique in the pipeline."""
    uses: str
    stage: type[Stage]
    params: Parameters
    inputs: Mapping[str, tuple[Reference, ...]]
    needs: tuple[str, ...]
    """Stages to wait for without reading from them."""
    resources: Resources
    retries: int
    timeout_seconds: float | None
    max_parallel: int | None
    """Arms of its matrix that may be under way at a time; None: as many as there is room for."""
    expect: tuple[Gate, ...]
    seed: int
    path: Path
    """Where the stage stands in the file."""
    place: str = ""
    """The same for people: `quickstart.yaml:29`."""

    @cached_property
    def upstream(self) -> tuple[str, ...]:
        """Names of the stages that must end before this one starts, sorted."""
        read = {reference.stage for references in self.inputs.values() for reference in references}
        compared = {gate.of[0] for gate in self.expect if gate.of}
        return tuple(sorted(read | set(self.needs) | compared))

    def make(self) -> Stage:
        """The stage object, ready for `preflight` and `run`."""
        return self.stage(self.params)


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; `stages` are in an order in which each comes after what it needs."""

    name: str
    description: str
    file: str
    seed: int
    stages: Mapping[str, StageSpec]
    params: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    """The `--set` texts that were applied."""
    asked: tuple[str, ...] = ()
    """The same as somebody wrote them, with a budget by its name; for what is told, not for what is done."""
    text: str = ""
    """The file as it was read, without them."""

    def downstream(self, name: str) -> set[str]:
        """Every stage that waits, directly or not, for `name`."""
        found = {name}
        for stage in self.stages.values():
            if found.intersection(stage.upstream):
                found.add(stage.name)
        return found - {name}

    def resolved(self) -> dict[str, Any]:
        """The pipeline with everything filled in, as plain values: what a run records."""
        return {
            "name": self.name,
            "description": self.description,
            "seed": self.seed,
            "params": dict(self.params),
            "stages": {name: _resolved(stage) for name, stage in self.stages.items()},
        }


def _resolved(stage: StageSpec) -> dict[str, Any]:
    inputs = {name: [str(reference) for reference in references] for name, references in stage.inputs.items()}
    return {
        "uses": stage.uses,
        "with": stage.params.model_dump(mode="json"),
        "inputs": {name: texts[0] if len(texts) == 1 else texts for name, texts in inputs.items()},
        "needs": list(stage.needs),
        "resources": dict(vars(stage.resources)),
        "retries": stage.retries,
        "timeout_seconds": stage.timeout_seconds,
        "max_parallel": stage.max_parallel,
        "expect": {gate.metric: gate.text for gate in stage.expect},
        "seed": stage.seed,
    }
