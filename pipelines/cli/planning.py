"""`regraft plan` for machines: what a run would do, why, how long it may take, whether the cluster could ever do it.

Imports nothing for the terminal, so that `plan --json` stays quick; people read `pipelines.cli.planned`.
"""

from __future__ import annotations

from typing import Any

from clusters.capacity import known_capacity
from clusters.profile import Profile
from pipelines.planning.durations import Expected
from pipelines.planning.plan import Plan, Step
from pipelines.planning.preflight import beyond

Problems = dict[str, tuple[str, str]]
"""Stage → what it asks for in vain, and the fix."""


def impossible(plan: Plan, profile: Profile, cluster: str) -> Problems:
    """Stages that ask for what the cluster is known never to give."""
    capacity, where = known_capacity(profile), f"cluster {cluster!r}"
    found: Problems = {}
    for spec in plan.may_run:
        found.update((spec.name, problem) for problem in beyond(spec, capacity, where)[:1])
    return found


def plan_json(plan: Plan, expected: Expected, problems: Problems) -> dict[str, Any]:
    """The plan for machines."""
    return {
        "pipeline": plan.pipeline.name,
        "expected_seconds": expected.total_seconds if expected.stages else None,
        "without_expectation": list(expected.unknown),
        "stages": [_step_json(step, expected, problems) for step in plan.steps.values()],
    }


def _step_json(step: Step, expected: Expected, problems: Problems) -> dict[str, Any]:
    name, manifest = step.spec.name, step.manifest
    problem = problems.get(name)
    return {
        "stage": name,
        "uses": step.spec.uses,
        "state": step.state,
        "forced": step.forced,
        "key": step.key,
        "reasons": [reason.as_json() for reason in step.why],
        "made_by": manifest.run if manifest else None,
        "expected_seconds": expected.stages.get(name),
        "resources": dict(vars(step.spec.resources)),
        "cluster_can": problem is None,
        "cluster_problem": problem[0] if problem else None,
    }
