"""A causal language model taken apart at its attention: what every head gives is recorded, and put in from outside.

With the attention outputs given, what is left of a transformer (residual stream, norms, feed-forward layers, head)
works on each position by itself, so any few positions can be run alone, for many changes at once. The layers' own
`forward` does it, so that norms and activations are those of the model, whatever they are.

Shapes: T tokens, P positions, L layers, H query heads, K head width, D hidden size, V variants (changed copies of one
text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from stages.errors import UserError
from stages.transfer.heads import HeadShape


@dataclass
class Recording:
    """One text going through a model, at every layer."""

    inputs: list[Tensor] = field(default_factory=list)
    """What enters each layer [T, D], as everything here for each of L layers."""
    normed: list[Tensor] = field(default_factory=list)
    """What enters its attention [T, D]."""
    heads: list[Tensor] = field(default_factory=list)
    """What its heads give [T, H, K], before the output projection."""
    attention: list[Tensor] = field(default_factory=list)
    """What its attention gives [T, D], after the output projection."""
    options: list[dict[str, Any]] = field(default_factory=list)
    """With what else its attention was called: position embeddings, mask."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    """Logits [P, V] at the positions asked for (here V is the vocabulary)."""


class Body:
    """The parts of a supported model. Its weights lose their `requires_grad`."""

    def __init__(self, model: PreTrainedModel, shape: HeadShape) -> None:
        self.model, self.shape = model.requires_grad_(False).eval(), shape
        self.base: nn.Module = model.base_model
        self.layers: list[nn.Module] = list(self.base.layers)
        self.attentions = [layer.self_attn for layer in self.layers]
        widths = {attention.o_proj.in_features for attention in self.attentions}
        if len(self.layers) != shape.num_layers or len(widths) > 1 or widths.pop() % shape.num_heads:
            raise UserError(
                f"the layers of the model do not all have the heads of its config: {shape}",
                where="model",
                fix="give a model whose layers are alike, not one pruned unevenly",
            )

    @torch.no_grad()
    def record(self, ids: Sequence[int], positions: Tensor) -> Recording:
        """Run `ids` [T], keeping what goes in and out of every attention, and the logits at `positions` [P]."""
        tape = Recording()
        hooks = [hook for index in range(len(self.layers)) for hook in self._listen(index, tape)]
        try:
            ids_BT = torch.tensor([list(ids)], device=self.model.device)
            tape.logits = self.model(input_ids=ids_BT, use_cache=False, logits_to_keep=positions).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        return tape

    def _listen(self, index: int, tape: Recording) -> Iterator[RemovableHandle]:
        def enter_layer(_: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> None:
            tape.inputs.append((args[0] if args else more["hidden_states"])[0])

        def enter_attention(_: nn.Module, __: tuple[Any, ...], more: dict[str, Any]) -> None:
            tape.normed.append(more["hidden_states"][0])
            tape.options.append({name: value for name, value in more.items() if name != "hidden_states"})

        def enter_projection(_: nn.Module, args: tuple[Any, ...]) -> None:
            tape.heads.append(self._split(args[0][0]))

        def leave_attention(_: nn.Module, __: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            tape.attention.append(output[0][0])

        attention = self.attentions[index]
        yield self.layers[index].register_forward_pre_hook(enter_layer, with_kwargs=True)
        yield attention.register_forward_pre_hook(enter_attention, with_kwargs=True)
        yield attention.o_proj.register_forward_pre_hook(enter_projection)
        yield attention.register_forward_hook(leave_attention)

    def layer(self, index: int, states_VPD: Tensor, attention_VPD: Tensor, heard: list[Tensor] | None = None) -> Tensor:
        """What layer `index` makes of `states_VPD` when its attention gives `attention_VPD`.

        What its attention would have read [V, P, D] is put into `heard`.
        """

        def replay(hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
            if heard is not None:
                heard.append(hidden_states)
            return attention_VPD, None

        with _forward_as(self.attentions[index], replay):
            return self.layers[index](states_VPD)

    def live(self, index: int, normed_VTD: Tensor, options: dict[str, Any]) -> Tensor:
        """What the heads of layer `index` really give [V, T, H, K] when its attention reads `normed_VTD`."""
        attention, caught = self.attentions[index], []
        hook = attention.o_proj.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            attention(hidden_states=normed_VTD, **options)
        finally:
            hook.remove()
        return self._split(caught[0])

    def projected(self, index: int, heads_VPHK: Tensor) -> Tensor:
        """What a change `heads_VPHK` of the heads' outputs adds to the attention output of layer `index` [V, P, D]."""
        return nn.functional.linear(heads_VPHK.flatten(-2), self.attentions[index].o_proj.weight)

    def logits(self, states_VPD: Tensor, columns_PC: Tensor) -> Tensor:
        """The logits [V, P, C] of the tokens `columns_PC`, for the states that leave the last layer."""
        head = self.model.get_output_embeddings()
        rows_PCD, hidden_VPD = head.weight[columns_PC], self.base.norm(states_VPD)
        body = BaseModelOutputWithPast(last_hidden_state=hidden_VPD)
        ids_BT = columns_PC.new_zeros(len(states_VPD), states_VPD.shape[1])
        # the model's own forward, for what it does to logits: scales, soft caps
        with (
            _forward_as(self.base, lambda **_: body),
            _forward_as(head, lambda hidden_VPD: torch.einsum("vpd,pcd->vpc", hidden_VPD, rows_PCD)),
        ):
            return self.model(input_ids=ids_BT, use_cache=False).logits

    def _split(self, heads: Tensor) -> Tensor:
        return heads.unflatten(-1, (self.shape.num_heads, -1))


@contextmanager
def _forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `module` do `forward`, for a while."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
