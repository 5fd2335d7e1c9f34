"""What to try when a stage runs out of memory: the same work in less, by execution fields alone.

Each method says what its next smaller step is (`Parameters.smaller`); the result stays the same, so the key does too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pipelines.causes import causes
from pipelines.spec.pipeline import StageSpec

SIGNS: Final = ("out of memory", "can't allocate memory", "cannot allocate memory", "OutOfMemoryError")
"""What errors of torch on GPUs and CPUs, of numpy and of other processes say, whatever their class."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a lack of memory."""
    return any(
        isinstance(link, MemoryError) or any(sign in f"{type(link).__name__}: {link}" for sign in SIGNS)
        for link in causes(error)
    )


def step_down(spec: StageSpec) -> tuple[StageSpec, str] | None:
    """The stage in less memory, and what changed as people read it; None at the end of the ladder."""
    params = spec.params.smaller(spec.resources.workers)
    if params is None:
        return None
    assert params.identity() == spec.params.identity(), f"{spec.uses}: `smaller` changed what the result is"
    before, after = spec.params.model_dump(mode="json"), params.model_dump(mode="json")
    changes = [f"{name} {before[name]} → {after[name]}" for name in after if before[name] != after[name]]
    return replace(spec, params=params), ", ".join(changes)
