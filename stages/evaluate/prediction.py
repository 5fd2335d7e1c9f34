"""The next-token logits of a causal language model, read a few positions at a time.

The logits of a batch are by far its largest tensor: 8 windows of 2048 tokens over a vocabulary of 262144 take 8 GB in
bfloat16, where the hidden states they come from take 100 MB. So the body of the model runs once for a batch, keeping
its hidden states, and the tail of the model's own `forward` (its head, and any scale or soft cap on the logits, such as
Gemma, Granite and Cohere have) runs again for each few positions that are asked for. Whether a model can be cut this
way is tried, not guessed: on its first tokens both ways must give the same bits, and positions must not depend on each
other; else whole logits are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.forwarding import forwarding

PROBE_TOKENS = 8
"""Tokens on which the two ways are compared."""
ROUNDING = 0.02
"""Relative difference that matrix products of other shapes may make, in bfloat16."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for the P = B * (T - 1) next tokens of a batch."""

    num_positions: int
    vocab_size: int
    layers: tuple[Tensor, ...]
    """Hidden states [B, T - 1, H]: the embeddings, then each layer's output; empty unless asked for."""
    read: Callable[[int, int], Tensor]
    """`read(start, stop)`: logits [stop - start, V] of those positions, counted over the flattened batch, as the
    model gives them."""


class Predictor:
    """Gives `Prediction`s of one model; it computes without gradients, in whatever mode the model is."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._body: nn.Module | None = None
        self._probed = False

    @property
    def streams(self) -> bool:
        """Whether the logits come in parts; known after the first batch."""
        return self._body is not None

    @torch.no_grad()
    def predict(self, ids_BT: Tensor, *, layers: bool = False) -> Prediction:
        """Predict the tokens 1..T-1 of each window of `ids_BT` from those before them; `layers` keeps hidden states."""
        inputs_BT = ids_BT[:, :-1].to(self._device)
        if not self._probed:
            self._body, self._probed = _separable_body(self._model, inputs_BT[:1, :PROBE_TOKENS]), True
        if self._body is None:
            return _whole(self._model, inputs_BT, layers)
        return _streamed(self._model, self._body, inputs_BT, layers)


def _whole(model: nn.Module, inputs_BT: Tensor, layers: bool) -> Prediction:
    output = model(input_ids=inputs_BT, use_cache=False, **({"output_hidden_states": True} if layers else {}))
    logits_PV = output.logits.flatten(0, 1)
    hidden = tuple(output.hidden_states or ()) if layers else ()
    return Prediction(*logits_PV.shape, hidden, lambda start, stop: logits_PV[start:stop])


def _streamed(model: nn.Module, body: nn.Module, inputs_BT: Tensor, layers: bool) -> Prediction:
    options = {"output_hidden_states": True} if layers else {}
    output, last_BTV = _run(model, body, inputs_BT, logits_to_keep=1, **options)
    hidden_PH, ids_P = output.last_hidden_state.flatten(0, 1), inputs_BT.flatten()
    layers_BTH = tuple(output.hidden_states or ()) if layers else ()

    @torch.no_grad()
    def read(start: int, stop: int) -> Tensor:
        return _run_tail(model, body, output, hidden_PH[None, start:stop], ids_P[None, start:stop])[0]

    return Prediction(len(hidden_PH), last_BTV.shape[-1], layers_BTH, read)


def _separable_body(model: nn.Module, probe_BT: Tensor) -> nn.Module | None:
    """The module that makes the hidden states of `model`, or None when its `forward` is not body, then tail."""
    if not isinstance(model, PreTrainedModel) or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return None
    body = model.base_model
    if body is model:
        return None
    output, whole_BTV = _run(model, body, probe_BT)
    hidden_BTH = getattr(output, "last_hidden_state", None)
    if hidden_BTH is None or hidden_BTH.shape[:2] != probe_BT.shape:
        return None
    same = torch.equal(_run_tail(model, body, output, hidden_BTH, probe_BT), whole_BTV)
    return body if same and _is_positionwise(model, body, output, hidden_BTH, probe_BT, whole_BTV) else None


def _is_positionwise(
    model: nn.Module, body: nn.Module, output: Any, hidden_BTH: Tensor, probe_BT: Tensor, whole_BTV: Tensor
) -> bool:
    """Whether the tail gives the second half of the positions the same without the first, up to rounding."""
    half = probe_BT.shape[1] // 2
    part_BTV = _run_tail(model, body, output, hidden_BTH[:, half:], probe_BT[:, half:])
    size = whole_BTV.abs().amax().item()
    return torch.allclose(part_BTV, whole_BTV[:, half:], rtol=ROUNDING, atol=ROUNDING * size)


def _run(model: nn.Module, body: nn.Module, inputs_BT: Tensor, **options: Any) -> tuple[Any, Tensor]:
    """Run the model; returns what its body made, and its logits."""
    outputs: list[Any] = []
    hook = body.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        logits_BTV = model(input_ids=inputs_BT, use_cache=False, **options).logits
    finally:
        hook.remove()
    return (outputs[0] if outputs else None), logits_BTV


def _run_tail(model: nn.Module, body: nn.Module, output: Any, hidden_BTH: Tensor, ids_BT: Tensor) -> Tensor:
    """What the model's `forward` makes of `hidden_BTH`, as if its body had returned them for `ids_BT`."""
    part = copy(output)
    part.last_hidden_state = hidden_BTH
    with forwarding(body, lambda *_args, **_options: part):
        return model(input_ids=ids_BT, use_cache=False).logits
