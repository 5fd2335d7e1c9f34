"""What a report says, as plain frozen values: `gather` makes them, the rest shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Link:
    """An artifact at one end of a stage: what the stage calls it, and which `stage.output` it is."""

    name: str
    stage: str
    output: str
    kind: str = ""
    digest: str = ""
    """SHA-256, 64 hex digits; empty when it was never made."""
    size: int = 0
    """Bytes of all its files."""
    weights: int = 0
    """Bytes of its weights, for a model; `size` where the files are not known."""
    uri: str = ""
    schema: str = ""
    """Of a dataset, where the files are known."""

    @property
    def origin(self) -> str:
        """`stage.output`."""
        return f"{self.stage}.{self.output}"


@dataclass(frozen=True)
class GateReport:
    """A bound on a metric, and whether it holds; None when the stage never got so far."""

    metric: str
    bound: str
    value: float | None
    holds: bool | None


@dataclass(frozen=True)
class StageReport:
    """One stage: what it was told, what it read, how it went, what it made and measured."""

    name: str
    slug: str
    uses: str
    state: str
    upstream: tuple[str, ...] = ()
    attempt: int = 1
    seconds: float | None = None
    """What the stage took in this run; for a cached one, in the run that made it."""
    producer: str = ""
    """The run that made a cached result."""
    reason: str = ""
    seed: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    peak_memory_bytes: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    inputs: tuple[Link, ...] = ()
    outputs: tuple[Link, ...] = ()
    gates: tuple[GateReport, ...] = ()
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Points (step, value) in the order of steps."""
    messages: tuple[str, ...] = ()
    error: Mapping[str, str] = field(default_factory=dict)
    """`message`, `fix` and `tail` (the end of the log) of a failure; empty when there was none."""


@dataclass(frozen=True)
class RunReport:
    """The run and its stages, in an order in which each comes after what it needs."""

    run: str
    pipeline: str
    description: str
    state: str
    seconds: float | None
    began: float
    """Seconds since the epoch."""
    command: str
    store: str
    seed: int | None
    overrides: tuple[str, ...]
    git: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    stages: tuple[StageReport, ...]
    rerun_of: str = ""
    """The run whose artifacts were the inputs of this one."""
    resumes: str = ""
    """The run that this one went on with."""
