"""What the routers of a model decided in one forward pass, handed out the way `transformers` does for its mixtures.

`model(..., output_router_logits=True)` gives `router_logits`, `aux_loss` and, with labels, adds the auxiliary losses to
`loss`. The base classes know nothing of routers, so hooks around the model's forward take the flag off and put the
results on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from grafts.experts.routing import balance_loss, z_loss


@dataclass
class ExpertsOutput(MoeCausalLMOutputWithPast):
    """As in `transformers`, with what its mixtures do not have."""

    attention_router_logits: tuple[Tensor, ...] | None = None
    """[B·T, N] for each layer with attention experts."""
    dropped_share: Tensor | None = None
    """Share of the assignments that found no room, in a model with a capacity that is being trained."""


class Record:
    """Collects what the routers of one model decide while `on`: set around a forward pass that asks for it."""

    def __init__(self, top_k: int, balance_weight: float, z_weight: float) -> None:
        self.top_k, self.balance_weight, self.z_weight = top_k, balance_weight, z_weight
        self.begin(on=False)

    def begin(self, *, on: bool) -> None:
        """Forget the last pass."""
        self.on = on
        self.logits: list[Tensor] = []
        self.attention_logits: list[Tensor] = []
        self.kept: list[Tensor] = []

    def routed(self, logits_PN: Tensor, kept_PK: Tensor | None) -> None:
        """A layer of feed-forward experts has decided, and `kept_PK` of its assignments."""
        if self.on:
            self.logits.append(logits_PN)
            self.kept.extend(() if kept_PK is None else (kept_PK.float().mean(),))

    def mixed(self, logits_PN: Tensor) -> None:
        """A layer of attention experts has weighed them."""
        if self.on:
            self.attention_logits.append(logits_PN)

    def watch(self, model: nn.Module) -> None:
        """Serve `output_router_logits` of `model` from now on."""
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, with_kwargs=True)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        asked = kwargs.pop("output_router_logits", None)
        self.begin(on=bool(getattr(model.config, "output_router_logits", False) if asked is None else asked))
        if self.on and kwargs.get("return_dict") is False:
            raise ValueError("router logits come by name: leave out `return_dict=False`")
        return args, kwargs

    def _after(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.on:
            return None
        balance, z = self._losses(kwargs.get("attention_mask"))
        fields = dict(output)
        if fields.get("loss") is not None:
            fields["loss"] = fields["loss"] + self.balance_weight * balance + self.z_weight * z
        full = ExpertsOutput(
            **fields,
            aux_loss=balance,
            router_logits=tuple(self.logits),
            attention_router_logits=tuple(self.attention_logits) or None,
            dropped_share=1 - torch.stack(self.kept).mean() if self.kept else None,
        )
        self.begin(on=False)  # the tensors belong to whoever asked
        return full

    def _losses(self, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Balance and z-loss, means over the layers, padding left out."""
        layers = self.logits
        if isinstance(mask_BT, Tensor) and mask_BT.ndim == 2:
            num_tokens = len(layers[0]) // len(mask_BT)  # while generating, the mask covers the past as well
            real_P = mask_BT[:, -num_tokens:].flatten().bool()
            layers = [logits_PN[real_P] for logits_PN in layers]
        balance = torch.stack([balance_loss(logits_PN, self.top_k) for logits_PN in layers]).mean()
        return balance, torch.stack([z_loss(logits_PN) for logits_PN in layers]).mean()
