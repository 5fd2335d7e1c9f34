"""Exact effects of attention heads by activation patching (arXiv 2606.20097, section 4.1 and appendix C.1).

A head's output O in the clean text x is exchanged for its output O' in the counterfactual x', every other attention
output stays as it was in x, and the effect is the share of the logit difference that is lost:

    IE = (m(x) - m(x; O ← O')) / (m(x) - m(x')),   m = Σ_j λ^j (z_j[a⁺_j] - z_j[a⁻_j]) / Σ_j λ^j

Received effect: the exchange reaches the logits through residual stream and feed-forward layers alone, so only the
positions that predict are run, the heads of a layer as one batch. Sent effect (one-step-back path patching): it reaches
them only through what the receiving heads make of it, whose own exchange is then the received effect; a path may have
more such steps.

Shapes as in `recording`; R positions (rows) of a text. `naive` forms with full forward passes are in the tests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.transfer.recording import Body, Recording

Changes = dict[int, Tensor]
"""By layer, what is added to its attention output at some positions [V, R, D]."""


@dataclass(frozen=True)
class Trial:
    """A pair of texts, recorded."""

    clean: Recording
    other: list[Tensor]
    """What each layer's heads give in the counterfactual [T, H, K]."""
    start: int
    """The first position where the texts differ; before it every head gives the same."""
    reads: Tensor
    """Positions that predict [P]."""
    columns: Tensor
    """At each of them the token of the clean text and that of the counterfactual [P, 2]."""
    weights: Tensor
    """Their share in the logit difference [P]: λ^j over its sum."""
    clean_score: float
    """m(x), in logits."""
    other_score: float
    """m(x')."""

    @property
    def drop(self) -> float:
        """m(x) - m(x'): what an effect of 1 loses."""
        return self.clean_score - self.other_score

    def exchange(self, layer: int, rows: Tensor | slice) -> Tensor:
        """O' - O of every head of `layer` at `rows` [R, H, K]."""
        return self.other[layer][rows] - self.clean.heads[layer][rows]


class Replay:
    """Runs a trial's clean text with its attention outputs replayed, changed where one likes."""

    def __init__(self, body: Body, trial: Trial) -> None:
        self._body, self._trial = body, trial
        self.rows = slice(trial.start, None)

    def score(self, changes: Changes) -> Tensor:
        """The logit difference m [V] when `changes`, at the positions that predict, reach the logits directly."""
        trial, first = self._trial, min(changes)
        states_VPD = trial.clean.inputs[first][trial.reads].expand(len(changes[first]), -1, -1)
        for layer in range(first, self._body.shape.num_layers):
            states_VPD = self._body.layer(layer, states_VPD, self._attention(layer, trial.reads, changes))
        return score(self._body.logits(states_VPD, trial.columns), trial.weights)

    def responses(self, changes: Changes, listening_LH: Tensor) -> Changes:
        """What `changes` at all rows make the heads `listening_LH` add to their layers' attention outputs.

        Each listens to the changes alone, not to another listener. Variant 0 of `changes` has to be no change.
        """
        first = min(changes)
        states_VRD = self._trial.clean.inputs[first][self.rows].expand(len(changes[first]), -1, -1)
        found: Changes = {}
        for layer in range(first, _last(listening_LH) + 1):
            heard: list[Tensor] = []
            states_VRD = self._body.layer(layer, states_VRD, self._attention(layer, self.rows, changes), heard)
            if layer > first and listening_LH[layer].any():
                live_VRHK = self._live(layer, heard[0])
                # less what the unchanged variant gives: it has been through the same arithmetic
                moved_VRHK = (live_VRHK - live_VRHK[:1]) * listening_LH[layer].to(live_VRHK)[:, None]
                found[layer] = self._body.projected(layer, moved_VRHK)
        return found

    def _live(self, layer: int, normed_VRD: Tensor) -> Tensor:
        """What the heads of `layer` give at all rows [V, R, H, K] when they read `normed_VRD` there."""
        clean, start = self._trial.clean, self._trial.start
        before_VTD = clean.normed[layer][:start].expand(len(normed_VRD), -1, -1)
        whole_VTD = torch.cat([before_VTD, normed_VRD], dim=1)
        return self._body.live(layer, whole_VTD, clean.options[layer])[:, start:]

    def _attention(self, layer: int, rows: Tensor | slice, changes: Changes) -> Tensor:
        recorded_RD = self._trial.clean.attention[layer][rows]
        return recorded_RD + changes[layer] if layer in changes else recorded_RD


class Effects(ABC):
    """How much of the logit difference rests on each head."""

    def __init__(self, body: Body) -> None:
        self.body = body

    def received(self, trial: Trial) -> Tensor:
        """The effect of each head on the logits, directly: [L, H], float64."""
        return self._of_heads(trial, trial.reads, Replay(self.body, trial).score)

    def sent(self, trial: Trial, path: Sequence[Tensor]) -> Tensor:
        """The effect of each head [L, H] by way of the heads `path[0]`, through these of `path[1]`, and so on.

        Each step is a mask [L, H]; the last heads reach the logits directly.
        """
        replay = Replay(self.body, trial)

        def through(changes: Changes) -> Tensor:
            num_variants = len(changes[min(changes)])
            for listening_LH in path:
                changes = replay.responses(changes, listening_LH)
                if not changes:
                    return torch.zeros(num_variants, dtype=torch.float64)
            reads_P = trial.reads - trial.start
            return replay.score({layer: change_VRD[:, reads_P] for layer, change_VRD in changes.items()})

        return self._of_heads(trial, replay.rows, through)

    @abstractmethod
    def _of_heads(self, trial: Trial, rows: Tensor | slice, measure: Callable[[Changes], Tensor]) -> Tensor:
        """The effect [L, H] of exchanging each head at `rows`, where `measure` gives m [V] after changes there.

        Variant 0 of what `measure` is given has to be no change.
        """


class Patching(Effects):
    """Exact: every head is exchanged, those of a layer side by side."""

    def __init__(self, body: Body, batch_tokens: int) -> None:
        """`batch_tokens` positions go through a layer at once, or one head's where that is more."""
        super().__init__(body)
        self._batch_tokens = batch_tokens

    @torch.no_grad()
    def _of_heads(self, trial: Trial, rows: Tensor | slice, measure: Callable[[Changes], Tensor]) -> Tensor:
        shape = self.body.shape
        effects_LH = torch.zeros(shape.num_layers, shape.num_heads, dtype=torch.float64)
        for layer in range(shape.num_layers):
            exchange_RHK = trial.exchange(layer, rows)
            for heads in torch.arange(shape.num_heads).split(max(1, self._batch_tokens // len(exchange_RHK) - 1)):
                scores_V = measure({layer: self.body.projected(layer, _one_by_one(exchange_RHK, heads))}).cpu()
                effects_LH[layer, heads] = (scores_V[0] - scores_V[1:]) / trial.drop
        return effects_LH


def score(logits_VPC: Tensor, weights_P: Tensor) -> Tensor:
    """The logit difference m [V], float64: of the clean token over the other (C = 2), averaged by `weights_P`."""
    return ((logits_VPC[..., 0].double() - logits_VPC[..., 1].double()) * weights_P).sum(-1)


def geometric(num_positions: int, decay: float) -> Tensor:
    """λ^j over its sum, j = 0 .. P - 1, float64."""
    powers_P = decay ** torch.arange(num_positions, dtype=torch.float64)
    return powers_P / powers_P.sum()


def _one_by_one(exchange_RHK: Tensor, heads: Tensor) -> Tensor:
    """No change, then the exchange of each of `heads` alone [1 + n, R, H, K]."""
    alone_VRHK = exchange_RHK.new_zeros(1 + len(heads), *exchange_RHK.shape)
    for variant, head in enumerate(heads.tolist(), start=1):
        alone_VRHK[variant, :, head] = exchange_RHK[:, head]
    return alone_VRHK


def _last(mask_LH: Tensor) -> int:
    """The last layer in which a head is marked; -1 when there is none."""
    return int(mask_LH.any(-1).nonzero().max()) if mask_LH.any() else -1
