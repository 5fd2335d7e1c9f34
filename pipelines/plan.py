"""What a run would do, and why, without doing it.

Planning reads manifests and source files; it imports neither torch nor ray nor mlflow. Inputs count by content, so a
stage below one that has to run is *unknown*: it runs unless what is made above turns out to be what it had before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.identity import code_of, differences, identity_of, key_of
from pipelines.spec.pipeline import Pipeline, StageSpec
from pipelines.store import Manifest, Store
from stages.errors import UserError

State = Literal["cached", "run", "unknown"]


@dataclass(frozen=True)
class Step:
    """What a run would do with one stage."""

    spec: StageSpec
    state: State
    reasons: tuple[str, ...]
    identity: Mapping[str, Any] | None = None
    """None while an input is unknown."""
    key: str | None = None
    manifest: Manifest | None = None
    """The published result, when cached."""


@dataclass
class Plan:
    """A step for each stage, in running order."""

    pipeline: Pipeline
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether there is nothing to run."""
        return all(step.state == "cached" for step in self.steps.values())

    def count(self, state: State) -> int:
        """How many stages are in `state`."""
        return sum(step.state == state for step in self.steps.values())


def make_plan(pipeline: Pipeline, store: Store) -> Plan:
    """The plan. Raises UserError naming every source that is not there."""
    plan = Plan(pipeline)
    digests: dict[tuple[str, str], str] = {}
    problems: list[UserError] = []
    for spec in pipeline.stages.values():
        try:
            step = plan.steps[spec.name] = plan_stage(spec, pipeline.name, digests, store)
        except UserError as error:
            problems.append(error)
            continue
        if step.manifest is not None:
            learn(digests, spec.name, step.manifest)
    raise_together(problems)
    store.sources.save()
    return plan


def learn(digests: dict[tuple[str, str], str], stage: str, manifest: Manifest) -> None:
    """Add the output digests of a stage."""
    digests.update({(stage, name): output.digest for name, output in manifest.outputs.items()})


def plan_stage(
    spec: StageSpec,
    pipeline: str,
    digests: dict[tuple[str, str], str],
    store: Store,
) -> Step:
    """The step for one stage, from the output digests known so far."""
    waiting = sorted({r.stage for group in spec.inputs.values() for r in group if (r.stage, r.output) not in digests})
    if waiting:
        return Step(spec, "unknown", (f"waits for what {_names(waiting)} will make",))
    try:
        identity = identity_of(spec, digests, store)
    except UserError as error:
        raise UserError(error.message, where=f"stage {spec.name!r}", fix=error.fix) from None
    key = key_of(identity)
    manifest = store.find(spec.uses, key)
    if manifest is None:
        return Step(spec, "run", _why(spec, pipeline, identity, store), identity, key)
    problem = store.damage(manifest)
    if problem:
        return Step(spec, "run", (f"damaged: {problem}",), identity, key)
    return Step(spec, "cached", _origin(manifest), identity, key, manifest)


def raise_together(problems: list[UserError]) -> None:
    """Raise one UserError that tells all of `problems`, if there are any."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError("\n\n".join(str(problem) for problem in problems))


def _why(spec: StageSpec, pipeline: str, identity: Mapping[str, Any], store: Store) -> tuple[str, ...]:
    last = store.last(pipeline, spec.slug)
    if last is None:
        return ("new",)
    return tuple(differences(last, identity, code_of(spec.uses))) or ("its result is gone from the store",)


def _origin(manifest: Manifest) -> tuple[str, ...]:
    return (f"from run {manifest.run}",) if manifest.run else ()


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
