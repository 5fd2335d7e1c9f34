"""What a run writes down about the end of a stage: the event `stage-finished` of its journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.planning.plan import Step
from pipelines.spec.pipeline import StageSpec
from pipelines.store import Manifest, Store


@dataclass(frozen=True)
class Failure:
    """Why a stage failed."""

    message: str
    fix: str = ""
    tail: str = ""
    users_fault: bool = False


@dataclass(frozen=True)
class Ending:
    """How a stage ended."""

    spec: StageSpec
    state: str
    step: Step | None = None
    attempt: int = 0
    seconds: float = 0.0
    failure: Failure | None = None


def stage_finished(
    ending: Ending, manifests: Mapping[str, Manifest], store: Store, *, has_result: bool
) -> dict[str, Any]:
    """The event; `manifests` are those of the run's stages so far, `has_result` whether the stage's own counts."""
    spec, step, failure = ending.spec, ending.step, ending.failure
    manifest = manifests.get(spec.name)
    return {
        "event": "stage-finished",
        "stage": spec.name,
        "state": ending.state,
        "attempt": ending.attempt,
        "key": manifest.key if manifest else step.key if step else None,
        "method": manifest.method if manifest else spec.uses,
        "producer": manifest.run if manifest else None,
        "reason": "; ".join(step.reasons) if step else "",
        "seconds": round(ending.seconds, 3),
        "metrics": dict(manifest.metrics) if manifest else {},
        "evidence": dict(manifest.evidence) if manifest and ending.state == "done" else {},
        "inputs": _inputs(spec, manifest, manifests, store) if manifest and has_result else [],
        "outputs": [{"name": name, **_artifact(manifest, name, store)} for name in manifest.outputs]
        if manifest
        else [],
        "error": {"message": failure.message, "fix": failure.fix, "tail": failure.tail} if failure else None,
    }


def _inputs(
    spec: StageSpec, manifest: Manifest, manifests: Mapping[str, Manifest], store: Store
) -> list[dict[str, Any]]:
    """What the artifact was made from; a stage that is kept may have read something else than this run has."""
    read = manifest.identity.get("inputs", {})
    return [
        {
            "name": name,
            "stage": reference.stage,
            "output": reference.output,
            "producer": made.run,
            **_artifact(made, reference.output, store),
        }
        for name, references in spec.inputs.items()
        for reference in references
        if (made := manifests.get(reference.stage)) and made.outputs[reference.output].digest in read.get(name, ())
    ]


def _artifact(manifest: Manifest, output: str, store: Store) -> dict[str, Any]:
    record = manifest.outputs[output]
    return {
        "kind": record.kind,
        "schema": record.schema,
        "digest": record.digest,
        "uri": store.uri(manifest, output),
        "bytes": record.size,
    }
