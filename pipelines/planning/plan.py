"""What a run would do, and why, without doing it.

Planning reads manifests and source files; it imports neither torch nor ray nor mlflow. Inputs count by content, so a
stage below one that has to run is *unknown*: it runs unless what is made above turns out to be what it had before.

A selection narrows a plan. Stages above the chosen ones are taken as they are: cached under today's identity, or
*kept*, which means that the artifact they had last (in a rerun: in the earlier run) is used although it is stale. All
other stages are *left* alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipelines.planning import fingerprint
from pipelines.planning.drift import accepted
from pipelines.planning.identity import code_of, digest_of_inputs, grafts_in, identity_of, key_of, settled
from pipelines.planning.reasons import Reason, differences
from pipelines.planning.selection import EVERYTHING, Chosen, Selection, choose
from pipelines.spec.pipeline import Pipeline, StageSpec
from pipelines.store import Manifest, OutputRecord, Store
from stages.errors import UserError

State = Literal["cached", "run", "unknown", "kept", "left"]
Known = dict[tuple[str, str], OutputRecord]
Earlier = Callable[[StageSpec], Manifest | None]
"""The artifact that a stage had in an earlier run."""


@dataclass(frozen=True)
class Step:
    """What a run would do with one stage."""

    spec: StageSpec
    state: State
    why: tuple[Reason, ...]
    identity: Mapping[str, Any] | None = None
    """None while an input is unknown."""
    key: str | None = None
    manifest: Manifest | None = None
    """The artifact, when cached or kept."""
    forced: bool = False
    """Whether it is made anew though it may be there."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, as people read it."""
        return tuple(reason.text for reason in self.why)


@dataclass
class Plan:
    """A step for each stage, in running order."""

    pipeline: Pipeline
    chosen: Chosen
    steps: dict[str, Step] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether there is nothing to run."""
        return not self.may_run

    @property
    def may_run(self) -> list[StageSpec]:
        """The stages that run, or may."""
        return [step.spec for step in self.steps.values() if step.state in ("run", "unknown")]

    def count(self, state: State) -> int:
        """How many stages are in `state`."""
        return sum(step.state == state for step in self.steps.values())

    def again(self, spec: StageSpec, known: Known, store: Store) -> Step:
        """The step of a stage whose inputs have been made since the plan."""
        return plan_stage(spec, self.pipeline.name, known, store, forced=spec.name in self.chosen.forced)


def make_plan(
    pipeline: Pipeline, store: Store, selection: Selection = EVERYTHING, earlier: Earlier | None = None
) -> Plan:
    """The plan. Raises UserError naming every source and every artifact that is not there."""
    fingerprint.remember_in(store.root / "cache" / "code.json")
    plan = Plan(pipeline, choose(pipeline, selection))
    with store.snapshot(pipeline.name, (spec.slug for spec in pipeline.stages.values())):
        problems = [*_plan_stages(plan, store, earlier), *_missing(plan)]
    raise_together(problems)
    store.sources.save()
    fingerprint.save()
    return plan


def _plan_stages(plan: Plan, store: Store, earlier: Earlier | None) -> Iterator[UserError]:
    """Fill in the steps; yields what keeps a stage from having one."""
    known: Known = {}
    for spec in plan.pipeline.stages.values():
        try:
            step = plan.steps[spec.name] = _step(plan, spec, known, store, earlier)
        except UserError as error:
            yield error
            continue
        if step.manifest is not None:
            learn(known, spec.name, step.manifest)


def learn(known: Known, stage: str, manifest: Manifest) -> None:
    """Add the outputs of a stage."""
    known.update({(stage, name): output for name, output in manifest.outputs.items()})


def plan_stage(spec: StageSpec, pipeline: str, known: Known, store: Store, *, forced: bool = False) -> Step:
    """The step for one stage, from the outputs known so far."""
    waiting = sorted({r.stage for group in spec.inputs.values() for r in group if (r.stage, r.output) not in known})
    if waiting:
        return Step(spec, "unknown", _waits(spec, pipeline, known, store, waiting), forced=forced)
    try:
        identity = identity_of(spec, known, store)
    except UserError as error:
        raise UserError(error.message, where=f"{spec.place}: stage {spec.name!r}", fix=error.fix) from None
    step = Step(spec, "run", (), identity, key_of(identity), forced=forced)
    assert step.key is not None
    manifest = store.find(spec.uses, step.key)
    note: tuple[Reason, ...] = ()
    if manifest is None and (found := accepted(store, spec.uses, step.key)):
        manifest, note = found
    if manifest is None:
        return replace(step, why=_why(spec, pipeline, identity, store))
    problem = store.damage(manifest)
    if problem:
        return replace(step, why=(Reason("damaged", f"damaged: {problem}"),))
    if forced:
        return replace(step, why=(Reason("forced", "made anew, as asked, though it is cached"),))
    return replace(step, state="cached", why=(*_origin(manifest), *note), manifest=manifest)


def raise_together(problems: list[UserError]) -> None:
    """Raise one UserError that tells all of `problems`, if there are any."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError("\n\n".join(str(problem) for problem in problems))


def _step(plan: Plan, spec: StageSpec, known: Known, store: Store, earlier: Earlier | None) -> Step:
    role = plan.chosen.role(spec.name)
    if role == "left":
        return Step(spec, "left", (Reason("left", "not chosen"),))
    if role == "above":
        return _taken(spec, plan.pipeline.name, known, store, earlier)
    return plan_stage(spec, plan.pipeline.name, known, store, forced=spec.name in plan.chosen.forced)


def _taken(spec: StageSpec, pipeline: str, known: Known, store: Store, earlier: Earlier | None) -> Step:
    """The step of a stage that is not chosen, but stands above one that is."""
    try:
        planned = plan_stage(spec, pipeline, known, store)
    except UserError as error:
        planned = Step(spec, "run", (Reason("source", error.message),))
    wanted = earlier(spec) if earlier else None
    if planned.manifest is not None and (wanted is None or wanted.key == planned.manifest.key):
        return planned
    old = wanted or store.last(pipeline, spec.slug)
    if old is not None and not _fits(old, spec):
        return Step(spec, "left", (Reason("left", f"not chosen, and what it had last was made by {old.method}"),))
    if old is None or (problem := store.damage(old)):
        text = "not chosen, and it has no result yet" if old is None else f"not chosen, and damaged: {problem}"
        return Step(spec, "left", (Reason("left", text),))
    taken = f"the result of run {old.run} is taken as it is"
    if planned.manifest is not None:
        why = (Reason("taken", f"{taken}; run {planned.manifest.run} made another since", old.run),)
    elif planned.state == "unknown":
        why = (Reason("taken", f"{taken}, not compared with today's: {planned.why[0].name} has no result", old.run),)
    else:
        why = (Reason("taken", f"stale, and {taken}", old.run), *planned.why)
    return Step(spec, "kept", why, planned.identity, old.key, old)


def _fits(old: Manifest, spec: StageSpec) -> bool:
    """Whether an earlier artifact has what the stage is to make."""
    return old.method == spec.uses and set(spec.stage.outputs) <= set(old.outputs)


def _missing(plan: Plan) -> list[UserError]:
    """A problem for each artifact that a chosen stage reads and nobody will make."""
    readers: dict[str, list[str]] = {}
    for step in plan.steps.values():
        if step.spec.name in plan.chosen.chosen:
            for name in _read_by(step.spec):
                above = plan.steps.get(name)
                if above is not None and above.state == "left":
                    readers.setdefault(name, []).append(step.spec.name)
    return [
        UserError(
            f"stage {_names(names)} reads what {name} makes, which is {plan.steps[name].reasons[0]}",
            where=f"stage {name!r}",
            fix=f"choose it as well: --only {name}, or --from {name}",
        )
        for name, names in readers.items()
    ]


def _read_by(spec: StageSpec) -> set[str]:
    """Stages whose artifact or figures `spec` uses; those it only waits for are none."""
    read = {reference.stage for references in spec.inputs.values() for reference in references}
    return read | {gate.of[0] for gate in spec.expect if gate.of}


def _waits(spec: StageSpec, pipeline: str, known: Known, store: Store, waiting: list[str]) -> tuple[Reason, ...]:
    """That it waits, and what has changed apart from that."""
    reason = Reason("waits", f"waits for what {_names(waiting)} will make", " ".join(waiting))
    last = store.last(pipeline, spec.slug)
    if last is None:
        return (reason,)
    grafts = grafts_in(last.identity)  # those of models that are not made yet may be others
    identity = {**settled(spec, grafts), "inputs": digest_of_inputs(spec, known)}
    return (reason, *differences(last, identity, code_of(spec.uses, grafts), _origins(spec)))


def _why(spec: StageSpec, pipeline: str, identity: Mapping[str, Any], store: Store) -> tuple[Reason, ...]:
    last = store.last(pipeline, spec.slug)
    if last is None:
        return (Reason("new", "new"),)
    changes = differences(last, identity, code_of(spec.uses, grafts_in(identity)), _origins(spec))
    return tuple(changes) or (Reason("gone", "its result is gone from the store"),)


def _origins(spec: StageSpec) -> dict[str, list[str]]:
    return {name: [str(reference) for reference in references] for name, references in spec.inputs.items()}


def _origin(manifest: Manifest) -> tuple[Reason, ...]:
    return (Reason("made", f"from run {manifest.run}", manifest.run),) if manifest.run else ()


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
