"""`regraft run --smoke`: the whole DAG at a size that takes seconds a stage, before a cluster is paid for.

Every stage runs as the pipeline says, on one CPU, with the parameters of its own `smoke` profile: a generated model of
two layers, a few samples. Each contract between stages is exercised; no figure means anything, so gates only ask that
the figure is there and is a number. Results live in a store of their own, apart from the real ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pipelines.spec.gate import Gate
from pipelines.spec.pipeline import Pipeline, StageSpec
from stages.stage import Parameters, Resources

FOLDER = "smoke"
"""Where, below a store, the results of smoke runs are."""


def smoke_location(store: str) -> str:
    """The store of smoke runs that belongs to the store at `store` (a path or URL)."""
    return f"{store.rstrip('/')}/{FOLDER}"


def full_location(store: str) -> str:
    """The store that the smoke runs at `store` belong to."""
    return store.removesuffix(f"/{FOLDER}")


def smoke_version(pipeline: Pipeline) -> Pipeline:
    """The same DAG, each stage at its smallest."""
    return replace(pipeline, stages={name: _smallest(spec) for name, spec in pipeline.stages.items()})


def full_size(pipeline: Pipeline) -> list[str]:
    """Stages that declare no smoke profile although they have parameters: they run as the file says."""
    specs = pipeline.stages.values()
    return [
        spec.name for spec in specs if type(spec.params).smoke is Parameters.smoke and type(spec.params).model_fields
    ]


def _smallest(spec: StageSpec) -> StageSpec:
    return replace(
        spec,
        params=spec.params.smoke(),
        resources=Resources(),
        retries=0,
        timeout_seconds=None,
        expect=tuple(Gate(gate.metric, ">", -math.inf) for gate in spec.expect),
    )
