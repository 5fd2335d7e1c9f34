"""What `compress.prune` does: measure the inputs of linears, zero the weights that matter least, save and measure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.arithmetic import computing
from grafts.loader import load_model, save_model, stored_dtype
from stages.compress.masks import magnitude, save_masks, structured, unstructured, wanda
from stages.errors import UserError
from stages.evaluate.loading import DEVICE
from stages.quantize.flow import watching_inputs
from stages.training.heldout import heldout_distance
from stages.training.windows import input_windows

if TYPE_CHECKING:
    from stages.compress.prune import PruneParameters
    from stages.stage import Context


def prune(params: PruneParameters, context: Context) -> tuple[dict[str, float], dict[str, float]]:
    """Write output `model` with its masks; the figures, and the sparsity of each linear."""
    source, out = context.model("model").path, context.output("model")
    model = load_model(source, dtype=stored_dtype(source))
    norms = _measured(params, context, model.to(DEVICE)) if params.method == "wanda" else {}
    linears = decoder_linears(model.cpu())
    masks = {name: _mask(params, name, linear.weight.data, norms.get(name)) for name, linear in linears.items()}
    apply_masks(linears, masks)
    save_model(model, out, tokenizer_from=source)
    save_masks(masks, out)
    gone = {name: (~mask).sum().item() for name, mask in masks.items()}
    total = sum(mask.numel() for mask in masks.values())
    figures = {"sparsity": sum(gone.values()) / total, "pruned_weights": sum(gone.values())}
    by_linear = {name: count / masks[name].numel() for name, count in gone.items()}
    how = {"limit": params.heldout_windows, "batch_size": params.batch_size}
    parent = partial(load_model, source, dtype=model.dtype)
    return {**figures, **heldout_distance(context, parent, model, **how)}, by_linear


def decoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear but the head, by name. Raises UserError when there are none."""
    head = model.get_output_embeddings()
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not found:
        raise UserError(f"{type(model).__name__} has no linears to prune", fix="take a model made of linears")
    return found


def apply_masks(linears: dict[str, nn.Linear], masks: dict[str, Tensor]) -> None:
    """Zero the weights that a mask leaves out."""
    for name, mask_OI in masks.items():
        linears[name].weight.data.masked_fill_(~mask_OI, 0)


@torch.no_grad()
def input_norms(model: PreTrainedModel, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Euclidean norm of each input feature of every linear, [I], over all tokens of `batches` [B, T] of ids."""
    linears = decoder_linears(model)
    squares = {name: torch.zeros(linear.in_features, dtype=torch.float64) for name, linear in linears.items()}

    def add(name: str, x: Tensor) -> None:
        squares[name] += x.float().square().flatten(0, -2).sum(0).cpu()

    with watching_inputs(linears, add), computing(model):
        for ids_BT in batches:
            model(input_ids=ids_BT.to(model.device), use_cache=False, logits_to_keep=1)
    return {name: square.sqrt().float() for name, square in squares.items()}


def _mask(params: PruneParameters, name: str, weight_OI: Tensor, norm_I: Tensor | None) -> Tensor:
    scores_OI = magnitude(weight_OI) if norm_I is None else wanda(weight_OI, norm_I)
    if params.pattern is None:
        return unstructured(scores_OI, params.sparsity, by_row=norm_I is not None)
    try:
        return structured(scores_OI, *params.pattern)
    except ValueError as error:
        raise UserError(f"{name}: {error}", fix="choose a pattern that divides the widths of the model") from error


def _measured(params: PruneParameters, context: Context, model: PreTrainedModel) -> dict[str, Tensor]:
    return input_norms(model, input_windows(context, "data", params.calibration_windows).split(params.batch_size))
