"""Head effects the slow way: whole forward passes of the model, one for a head and a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

Heads = list[Tensor]
"""What the heads of each layer give, [T, H, K]."""


@dataclass(frozen=True)
class Texts:
    """A pair of texts; at the positions `reads`, `columns` are the clean token and the other."""

    ids: list[int]
    other: list[int]
    reads: list[int]
    columns: list[tuple[int, int]]
    decay: float = 0.9


class Naive:
    def __init__(self, model: PreTrainedModel, texts: Texts) -> None:
        self.model, self.texts = model, texts
        self.clean_score, self.clean = self.run(texts.ids)
        self.other_score, self.other = self.run(texts.other)

    def run(self, ids: list[int], given: Mapping[int, Tensor] | None = None) -> tuple[float, Heads]:
        """m, and what the heads gave; layers in `given` pass that on instead."""
        heads: Heads = []

        def replace(index: int, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            own = args[0][0].unflatten(-1, (self.model.config.num_attention_heads, -1))
            heads.append(own.clone())
            return ((given or {}).get(index, own).flatten(-2)[None],)

        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, index=index: replace(index, args))
            for index, layer in enumerate(self.model.base_model.layers)
        ]
        with torch.no_grad():
            logits_TV = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
        for hook in hooks:
            hook.remove()
        return self.score(logits_TV), heads

    def score(self, logits_TV: Tensor) -> float:
        total, weights = 0.0, 0.0
        for place, (read, (plus, minus)) in enumerate(zip(self.texts.reads, self.texts.columns, strict=True)):
            total += self.texts.decay**place * (logits_TV[read, plus] - logits_TV[read, minus]).item()
            weights += self.texts.decay**place
        return total / weights

    def effect(self, given: Mapping[int, Tensor]) -> float:
        """Of passing on `given`, in the layers it names."""
        return (self.clean_score - self.run(self.texts.ids, given)[0]) / (self.clean_score - self.other_score)

    def frozen(self, changes: Mapping[tuple[int, int], Tensor]) -> dict[int, Tensor]:
        """Clean outputs in every layer, but for the heads in `changes`."""
        given = {index: heads.clone() for index, heads in enumerate(self.clean)}
        for (layer, head), value_TK in changes.items():
            given[layer][:, head] = value_TK
        return given

    def received(self, layer: int, head: int) -> float:
        return self.effect(self.frozen({(layer, head): self.other[layer][:, head]}))

    def total(self, layer: int, head: int) -> float:
        """With everything after the head free to react."""
        changed = self.clean[layer].clone()
        changed[:, head] = self.other[layer][:, head]
        return self.effect({layer: changed})

    def sent(self, layer: int, head: int, path: Sequence[Tensor]) -> float:
        changes = {(layer, head): self.other[layer][:, head]}
        for listening_LH in path:
            _, heard = self.run(self.texts.ids, self.frozen(changes))
            changes = {(one, other): heard[one][:, other] for one, other in listening_LH.nonzero().tolist()}
        return self.effect(self.frozen(changes))
