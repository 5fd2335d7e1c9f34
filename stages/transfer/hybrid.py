"""What the stages of hybrid transfer ask of each other's models. Imports nothing heavy."""

from __future__ import annotations

from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.matching import text_config
from stages.training.checks import check_one_vocabulary

HYBRID = "hybrid_heads"
"""The graft's name in `config.json`."""
ATTENTION = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")


def check_pair(teacher: Model, student: Model) -> None:
    """The student is the teacher with hybrid heads. Raises UserError."""
    check_one_vocabulary(teacher, student)
    if all(graft["name"] != HYBRID for graft in student.grafts):
        raise UserError(
            f"the student, a {student.config.get('model_type')}, has no hybrid heads to align",
            where="student",
            fix="give the model of a `transfer.convert`",
        )
    for name in ATTENTION:
        sizes = [text_config(model.config).get(name) for model in (teacher, student)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"the teacher has {name} {sizes[0]}, the student {sizes[1]}",
                where="student",
                fix="give the model that `transfer.convert` made of this teacher",
            )
