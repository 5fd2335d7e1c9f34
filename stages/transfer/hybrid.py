"""What the stages of hybrid transfer ask of each other's models. Imports nothing heavy."""

from __future__ import annotations

from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.matching import first_difference, require_one_vocabulary

HYBRID = "hybrid_heads"
"""The graft's name in `config.json`."""
ATTENTION = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")


def check_pair(teacher: Model, student: Model) -> None:
    """The student is the teacher with hybrid heads, the teacher a pretrained model. Raises UserError."""
    if teacher.grafts:
        raise UserError(
            f"the teacher has grafts ({', '.join(graft['name'] for graft in teacher.grafts)})",
            where="teacher",
            fix="give the model as it was before `transfer.convert`",
        )
    require_one_vocabulary(teacher, student, ("teacher", "student"))
    if all(graft["name"] != HYBRID for graft in student.grafts):
        raise UserError(
            f"the student, a {student.config.get('model_type')}, has no hybrid heads",
            where="student",
            fix="give the model of a `transfer.convert`",
        )
    if differs := first_difference(teacher, student, ATTENTION):
        name, theirs, ours = differs
        raise UserError(
            f"the teacher has {name} {theirs}, the student {ours}",
            where="student",
            fix="give the model that `transfer.convert` made of this teacher",
        )
