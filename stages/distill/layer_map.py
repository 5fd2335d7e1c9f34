"""Which layer of a student is compared with which of its teacher. Imported to plan: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from stages.errors import UserError

Pairs = Sequence[tuple[int, int]]
"""(student's layer, teacher's layer), from 0."""


def layer_pairs(layer_map: Pairs | None, num_student: int, num_teacher: int, *, hidden: bool) -> Pairs:
    """`layer_map`, or without one every layer of the student with one as deep. UserError when one is not there.

    `hidden`: hidden states are compared, which the final norm has changed behind a model's last layer; a pair of a last
    layer and another is refused as well.
    """
    for ours, theirs in layer_map or ():
        if ours >= num_student or theirs >= num_teacher:
            raise UserError(
                f"layer_map names the pair ({ours}, {theirs}); the student has {num_student} layers, the teacher "
                f"{num_teacher}, counted from 0",
                fix="name layers that are there, or leave layer_map out",
            )
    pairs = pairs_by_depth(num_student, num_teacher) if layer_map is None else layer_map
    for ours, theirs in pairs if hidden else ():
        if (ours == num_student - 1) != (theirs == num_teacher - 1):
            raise UserError(
                f"hidden states of the pair ({ours}, {theirs}) cannot be compared: a last layer's are behind the "
                f"final norm; the last layer is {num_student - 1} in the student, {num_teacher - 1} in the teacher",
                fix="pair the last layer with the last, in layer_map, or set hidden_weight: 0",
            )
    return pairs


def pairs_by_depth(num_student: int, num_teacher: int) -> Pairs:
    """Every layer of the student with the teacher's layer that ends at the same depth: the last with the last."""
    return [(layer, max(0, (layer + 1) * num_teacher // num_student - 1)) for layer in range(num_student)]
