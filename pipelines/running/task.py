"""One attempt at a stage as plain values: what a worker is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.stage import Resources

if TYPE_CHECKING:
    from pipelines.planning.plan import Step
    from pipelines.spec.pipeline import StageSpec
    from pipelines.store import Manifest
    from pipelines.store.lease import Lease


@dataclass(frozen=True)
class Surroundings:
    """Where and as what a run happens; the same for all its stages."""

    run: str
    directory: Path
    search_path: tuple[str, ...]
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class InputRef:
    """One input artifact, by where the store has it."""

    method: str
    key: str
    output: str
    stage: str


@dataclass(frozen=True)
class Task:
    """One attempt at one stage."""

    run: str
    stage: str
    uses: str
    key: str
    identity: Mapping[str, Any]
    code: Mapping[str, str]
    params: Mapping[str, Any]
    inputs: Mapping[str, tuple[InputRef, ...]]
    seed: int
    resources: Resources
    attempt: int
    store: str
    log: str
    """Name of the log file among those of the run."""
    directory: str
    """The working directory that relative paths in parameters count from."""
    search_path: tuple[str, ...]
    lease: Lease
    """The run's right to publish this key."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    replace: bool = False
    """Whether to take the place of a result that is there, which is kept aside."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    manifest: str | None
    """The published manifest as JSON, or None when it failed."""
    seconds: float
    message: str = ""
    fix: str = ""
    tail: str = ""
    """The end of the log, for a failure nobody foresaw."""
    users_fault: bool = False
    fenced: bool = False
    """Another run has taken over the key meanwhile."""
    out_of_memory: bool = False


def make_task(
    step: Step,
    attempt: int,
    *,
    lease: Lease,
    code: Mapping[str, str],
    around: Surroundings,
    store: str,
    made: Mapping[str, Manifest],
) -> Task:
    """The attempt at `step` under `lease`; `made` has what the stages above have."""
    spec = step.spec
    assert step.key is not None
    assert step.identity is not None
    return Task(
        run=around.run,
        stage=spec.name,
        uses=spec.uses,
        key=step.key,
        identity=step.identity,
        code=code,
        params=spec.params.model_dump(mode="json"),
        inputs=_inputs(spec, made),
        seed=spec.seed,
        resources=spec.resources,
        attempt=attempt,
        store=store,
        log=f"{spec.slug}.log",
        directory=str(around.directory),
        search_path=around.search_path,
        evidence=around.evidence,
        replace=step.forced,
        lease=lease,
    )


def _inputs(spec: StageSpec, made: Mapping[str, Manifest]) -> dict[str, tuple[InputRef, ...]]:
    return {
        name: tuple(
            InputRef(made[reference.stage].method, made[reference.stage].key, reference.output, reference.stage)
            for reference in references
        )
        for name, references in spec.inputs.items()
    }
