"""`distill.logits`: a student learns its teacher's next-token distributions (arXiv 1503.02531).

Without a student, the teacher itself loses layers, evenly over its depth (arXiv 2408.11796), and is taught by its whole
self. The result is a model of the teacher's standard class with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from stages.artifacts import Dataset, Model, Report, write_report
from stages.distill.cache_card import CacheCard
from stages.distill.layer_map import layer_pairs
from stages.distill.settings import DistillParameters, LogitsParameters
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens, require_one_vocabulary, text_config
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.settings import TRAINED

__all__ = ["DistillLogits", "DistillParameters", "LogitsParameters"]


class DistillLogits(Stage):
    """Distil a teacher into a student by the divergence of their next-token distributions, then measure what is left.

    Without the input `student` the student is the teacher with `depth_fraction` of its layers. With the input `cache`
    (of `distill.cache`, on the same teacher and data) the teacher does not run while the student trains. With `heldout`
    the report tells KL to the teacher, perplexity ratio and top-1 agreement.
    """

    Params: ClassVar[type[DistillParameters]] = LogitsParameters
    inputs = {
        "teacher": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "heldout": Input(Dataset, schema="tokens", optional=True),
        "student": Input(Model, optional=True),
        "cache": Input(Dataset, schema="tokens", optional=True),
    }
    outputs = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = TRAINED
    paper = "1503.02531"

    params: DistillParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """One tokenizer and vocabulary everywhere, windows that fit, layers to prune or compare, the right cache."""
        teacher, student = inputs["teacher"], inputs.get("student")
        if student is None:
            _check_depth(self.params, teacher)
        else:
            require_one_vocabulary(teacher, student, ("teacher", "student"))
            _check_layers(self.params, teacher, student)
        for role, model in (("teacher", teacher), ("student", student)):
            if model is not None:
                require_given_tokens(model, inputs, role=role)
        _check_prompt(self.params, inputs["data"])
        if inputs.get("cache") is not None:
            _check_cache(self.params, inputs)

    def run(self, context: Context) -> None:
        """Train, save the student, measure it and report."""
        from stages.distill.recipe import Distillation
        from stages.training.launch import run_training

        recipe = Distillation.of(self.params, context)
        result = run_training(recipe, self.params, context)
        context.metrics(**result.figures, **result.cost)
        details = result.details(self.params, context.seed)
        write_report(context.output("report"), "Logit distillation", result.figures, details)


def _check_depth(params: DistillParameters, teacher: Model) -> None:
    """Layers can be dropped, and the layers that are named are there afterwards."""
    if teacher.grafts:
        raise UserError(
            f"the teacher has grafts ({', '.join(graft['name'] for graft in teacher.grafts)}), no layer can be dropped",
            fix="give a student as input `student`, or prune the model before it was converted",
        )
    num_layers = teacher.config.get("num_hidden_layers")
    if not isinstance(num_layers, int) or num_layers < 2:
        raise UserError(
            f"the teacher's config.json says num_hidden_layers {num_layers}, pruning by depth needs at least 2",
            fix="give a student as input `student`",
        )
    if params.compares_layers and params.layer_map is not None:
        from grafts.depth import num_kept_layers

        assert isinstance(params, LogitsParameters), "all others are given a student"
        num_kept = num_kept_layers(num_layers, params.depth_fraction)
        layer_pairs(params.layer_map, num_kept, num_layers, hidden=params.hidden_weight > 0)


def _check_layers(params: DistillParameters, teacher: Model, student: Model) -> None:
    """What the terms between layers compare is of one shape, and the layers that are named are there."""
    if not params.compares_layers:
        return
    configs = [text_config(model.config) for model in (student, teacher)]
    for weight, name, what in (
        ("hidden_weight", "hidden_size", "hidden states"),
        ("attention_weight", "num_attention_heads", "attention patterns"),
    ):
        found = [config.get(name) for config in configs]
        if getattr(params, weight) and found[0] != found[1]:
            raise UserError(
                f"{what} cannot be compared: the student has {name} {found[0]}, the teacher {found[1]}",
                fix=f"take a student with the teacher's {name}, or set {weight}: 0",
            )
    depths = [config["num_hidden_layers"] for config in configs]
    layer_pairs(params.layer_map, *depths, hidden=params.hidden_weight > 0)


def _check_prompt(params: DistillParameters, data: Dataset) -> None:
    if params.on_policy_fraction and params.prompt_tokens >= data.card.sequence_length:
        raise UserError(
            f"prompt_tokens: {params.prompt_tokens}, but the windows have {data.card.sequence_length} tokens: "
            "the student would write nothing",
            fix="lower prompt_tokens, or prepare longer windows",
        )


def _check_cache(params: DistillParameters, inputs: Mapping[str, Any]) -> None:
    if params.compares_layers or params.on_policy_fraction:
        asked = "hidden_weight and attention_weight" if params.compares_layers else "on_policy_fraction"
        raise UserError(
            f"{asked} need the teacher itself, a cache holds its next-token distributions only",
            fix="leave the input `cache` out, or set them to 0",
        )
    if not params.kl_weight:
        raise UserError(
            "kl_weight is 0: nothing that the cache holds would enter the loss",
            fix="leave the input `cache` out, or set kl_weight",
        )
    CacheCard.of(inputs["cache"]).require(inputs["teacher"], inputs["data"], params.temperature)
