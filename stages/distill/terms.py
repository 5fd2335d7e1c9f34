"""Losses between the insides of two models: hidden states and attention patterns, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.distill.layer_map import Pairs


@dataclass(frozen=True)
class LayerTerms:
    """The terms between layers that a loss asks for, with their weights."""

    hidden_weight: float
    attention_weight: float
    pairs: Pairs

    def asked(self) -> dict[str, bool]:
        """What to ask of both models' `forward`; nothing, if neither term counts."""
        wanted = {"output_hidden_states": self.hidden_weight > 0, "output_attentions": self.attention_weight > 0}
        return {name: True for name, is_wanted in wanted.items() if is_wanted}

    def unfused(self, model: nn.Module) -> nn.Module:
        """`model`, set to show its attention patterns if they count."""
        if self.attention_weight:
            model.set_attn_implementation("eager")
        return model

    def values(self, student: Any, teacher: Any, counts_BT: Tensor | None) -> dict[str, Tensor]:
        """Each term that counts, unweighted, by name, from both models' outputs."""
        found = {}
        if self.hidden_weight:
            found["hidden"] = hidden_term(student.hidden_states, teacher.hidden_states, self.pairs, counts_BT)
        if self.attention_weight:
            found["attention"] = attention_term(student.attentions, teacher.attentions, self.pairs, counts_BT)
        return found

    def total(self, values: dict[str, Tensor]) -> Tensor | float:
        """The weighted sum of `values`."""
        weights = {"hidden": self.hidden_weight, "attention": self.attention_weight}
        return sum(weights[name] * value for name, value in values.items())


def hidden_term(
    student: Sequence[Tensor], teacher: Sequence[Tensor], pairs: Pairs, counts_BT: Tensor | None = None
) -> Tensor:
    """|h_S - h_T|^2 / |h_T|^2 at each position that counts, summed over positions, mean over `pairs`.

    `student` and `teacher` are hidden states [B, T, H] as `transformers` returns them: the embeddings, then the output
    of each layer (of the last one, after the final norm). A share of the squared norm, because layers differ in it by
    orders of magnitude.
    """
    errors = [_relative_error(student[ours + 1], teacher[theirs + 1]) for ours, theirs in pairs]
    return _mean_of_sums(errors, counts_BT)


def attention_term(
    student: Sequence[Tensor], teacher: Sequence[Tensor], pairs: Pairs, counts_BT: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) of the attention patterns [B, H, T, T], mean over heads, summed over queries that count.

    In nats, mean over `pairs`.
    """
    return _mean_of_sums([_pattern_kl(student[ours], teacher[theirs]) for ours, theirs in pairs], counts_BT)


def _relative_error(student_BTH: Tensor, teacher_BTH: Tensor) -> Tensor:
    target_BTH = teacher_BTH.float()
    error_BT = (student_BTH.float() - target_BTH).square().sum(-1)
    return error_BT / target_BTH.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)


def _pattern_kl(student_BHTT: Tensor, teacher_BHTT: Tensor) -> Tensor:
    share_BHTT = teacher_BHTT.float()
    gap_BHTT = share_BHTT.clamp(min=1e-9).log() - student_BHTT.float().clamp(min=1e-9).log()
    return (share_BHTT * gap_BHTT).sum(-1).mean(1)


def _mean_of_sums(values_BT: list[Tensor], counts_BT: Tensor | None) -> Tensor:
    counted = [value_BT if counts_BT is None else value_BT[counts_BT] for value_BT in values_BT]
    return torch.stack([value.sum() for value in counted]).mean()
