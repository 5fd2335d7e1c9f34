"""How loud each attention head of a model is: what the gains of a hybrid layer start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.arithmetic import computing
from grafts.bases import decoder_layers


@torch.no_grad()
def head_rms(model: PreTrainedModel, batches: Sequence[Tensor]) -> dict[int, Tensor]:
    """For each layer, the mean over tokens of the root mean square of each head's output [H], in float32.

    `batches` are token ids [B, T]; what is measured enters `o_proj`. The model runs in evaluation mode and is left in
    the mode it was in.
    """
    sums: dict[int, Tensor] = {}
    num_tokens = sum(batch.numel() for batch in batches)
    with ExitStack() as hooks:
        hooks.callback(model.train, model.training)
        for index, layer in enumerate(decoder_layers(model)):
            attention = layer.self_attn
            handle = attention.o_proj.register_forward_pre_hook(_adder(sums, index, attention.head_dim))
            hooks.callback(handle.remove)
        model.eval()
        hooks.enter_context(computing(model))
        for batch in batches:
            model(batch.to(model.device), use_cache=False, logits_to_keep=1)
    return {index: total / num_tokens for index, total in sums.items()}


def _adder(sums: dict[int, Tensor], index: int, head_dim: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        heads_BTHD = inputs[0].float().unflatten(-1, (-1, head_dim))
        total_H = heads_BTHD.square().mean(-1).sqrt().sum((0, 1))
        sums[index] = sums.get(index, 0) + total_H

    return add
