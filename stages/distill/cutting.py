"""What `distill.student` does: measure importance, decide what stays, cut, save, measure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from grafts.depth import keep_layers, num_kept_layers, uniform_layers
from grafts.loader import load_model, save_model, stored_dtype
from stages.distill.importance import Importance, ablation, measure
from stages.distill.shapes import Shape
from stages.distill.width import Kept, narrow
from stages.evaluate.loading import DEVICE
from stages.training.heldout import heldout_distance
from stages.training.windows import input_windows

if TYPE_CHECKING:
    from stages.distill.student import StudentParameters
    from stages.stage import Context


def cut_student(params: StudentParameters, shape: Shape, context: Context) -> tuple[dict[str, float], dict[str, Any]]:
    """Write output `model`; the figures of it, and what was kept."""
    source = context.model("teacher").path
    teacher = load_model(source, dtype=stored_dtype(source)).to(DEVICE)
    windows_NT = input_windows(context, "data", params.calibration_windows) if params.measures else None
    scores = None if windows_NT is None else measure(teacher, windows_NT.split(params.batch_size))
    layers, by_layer = _layers(params, teacher, windows_NT, scores, context)
    details: dict[str, Any] = {"layers": layers, "layer_scores": by_layer}
    student = teacher if len(layers) == teacher.config.num_hidden_layers else keep_layers(teacher, layers)
    if params.narrows:
        assert scores is not None, "`measures` holds wherever `narrows` does"
        kept = kept_width(scores, shape, layers)
        student = narrow(student, kept)
        details |= {"groups": kept.groups, "channels": kept.channels, "hidden": kept.hidden}
    if params.weights == "fresh":
        student = fresh(student, context.seed)
    save_model(student, context.output("model"), tokenizer_from=source)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (student, teacher)]
    figures = {"layers": len(layers), "parameters": sizes[0], "parameters_ratio": sizes[0] / sizes[1]}
    how = {"limit": params.heldout_windows, "batch_size": params.batch_size}
    return {**figures, **heldout_distance(context, lambda: teacher, student, **how)}, details


def fresh(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same configuration and type with weights of its own, drawn by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made


def kept_width(scores: Importance, shape: Shape, layers: Sequence[int]) -> Kept:
    """The most important groups and channels of each of `layers`, and hidden channels, as many as `shape` has."""
    return Kept(
        groups=[top(scores.groups[layer], shape.num_groups) for layer in layers],
        channels=[top(scores.channels[layer], shape.num_channels) for layer in layers],
        hidden=top(scores.hidden, shape.hidden_size),
    )


def top(scores: Tensor, num: int) -> list[int]:
    """The places of the `num` highest of `scores`, ascending; of equal ones, the first."""
    order = scores.sort(descending=True, stable=True).indices
    return sorted(order[:num].tolist())


def _layers(
    params: StudentParameters,
    teacher: PreTrainedModel,
    windows_NT: Tensor | None,
    scores: Importance | None,
    context: Context,
) -> tuple[list[int], list[float]]:
    """The layers that stay, and the scores they were chosen by."""
    num_layers = teacher.config.num_hidden_layers
    num_kept = num_kept_layers(num_layers, params.depth_fraction)
    if params.layers is not None:
        return list(params.layers), []
    if num_kept == num_layers or params.depth == "uniform":
        return uniform_layers(num_layers, num_kept), []
    assert windows_NT is not None, "`measures` holds here"
    assert scores is not None
    found = scores.influence
    if params.depth == "ablation":
        found = ablation(teacher, windows_NT, params.batch_size, context.progress)
    return top(found, num_kept), found.tolist()
