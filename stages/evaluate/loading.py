"""Loading a model to measure it: strictly, in a chosen type, on the GPU where there is one."""

from __future__ import annotations

from typing import Final

import torch
from transformers import PreTrainedModel

from grafts.arithmetic import dtype_name
from grafts.loader import load_model
from grafts.quantised.linear import hold_weights
from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.precision import ComputeType, compute_dtype

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where models are measured; the scheduler shows a stage only the GPUs it asked for."""


def load_for_evaluation(
    source: Model, dtype: ComputeType | torch.dtype, *, trust_remote_code: bool = False, hold: bool = True
) -> PreTrainedModel:
    """The model of `source` in evaluation mode, its weights in `dtype`, on `DEVICE`.

    With `hold`, quantised linears of our own keep their dense weights once made: measuring reads them many times.
    Raises UserError for a model that does not load.
    """
    chosen = dtype if isinstance(dtype, torch.dtype) else compute_dtype(dtype, DEVICE.type)
    try:
        model = load_model(source.path, dtype=chosen, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise UserError(
            f"the model {source.name or source.path} cannot be loaded: {error}",
            where="model",
            fix="look at its config.json and weights, or make or fetch the model again",
        ) from error
    hold_weights(model, hold)
    return model.to(DEVICE)


def computed_in(dtype: ComputeType) -> str:
    """The name of the type that `dtype` means here, for reports."""
    return dtype_name(compute_dtype(dtype, DEVICE.type))
