"""Which layer of a student is compared with which of its teacher. Imported to plan: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from stages.errors import UserError

Pairs = Sequence[tuple[int, int]]
"""(student's layer, teacher's layer), from 0."""


def layer_pairs(layer_map: Pairs | None, num_student: int, num_teacher: int) -> Pairs:
    """`layer_map`, or without one every layer of the student with one as deep. UserError when one is not there."""
    for ours, theirs in layer_map or ():
        if ours >= num_student or theirs >= num_teacher:
            raise UserError(
                f"layer_map names the pair ({ours}, {theirs}); the student has {num_student} layers, the teacher "
                f"{num_teacher}, counted from 0",
                fix="name layers that are there, or leave layer_map out",
            )
    return pairs_by_depth(num_student, num_teacher) if layer_map is None else layer_map


def pairs_by_depth(num_student: int, num_teacher: int) -> Pairs:
    """Every layer of the student with the teacher's layer that ends at the same depth: the last with the last."""
    return [(layer, max(0, (layer + 1) * num_teacher // num_student - 1)) for layer in range(num_student)]
