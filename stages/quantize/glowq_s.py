"""`quantize.glowq_s`: GlowQ's corrections only where they are worth their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from stages.quantize.glowq import GlowqParams, QuantizeGlowq
from stages.stage import Context

if TYPE_CHECKING:
    from grafts.lowrank.selection import Score
    from stages.quantize.correction import Restored

FIGURE: Final = "restoration.svg"
DEFAULT_BUDGET: Final = 0.5
"""Of the bytes of all corrections."""


class GlowqSelectedParams(GlowqParams):
    """How weights are stored, corrected and chosen to be, on how much text they are calibrated and measured."""

    budget: Annotated[float | None, Field(ge=0, le=1)] = None
    """Share of the bytes of all corrections that may be kept; a half when `budget_bytes` is not given either."""
    budget_bytes: Annotated[int | None, Field(ge=0)] = None
    """Instead of `budget`: bytes of the corrections that are kept, at most."""
    score: Literal[
        "energy_capture",
        "gain_per_byte",
        "error_drop",
        "normalised_error_ratio",
        "norm_error",
        "nuclear",
        "frobenius",
        "cosine",
        "layer_order",
    ] = "energy_capture"
    """By what groups are ranked. `energy_capture`: share of the whitened error that the correction takes away;
    `gain_per_byte`: that error over the squared output, for each byte that it adds; `error_drop`: that error itself;
    `normalised_error_ratio`: squared weight error over squared weight; `norm_error`, `nuclear`, `frobenius`, `cosine`:
    variants of the official code; `layer_order`: earlier layers first."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.budget is not None and self.budget_bytes is not None:
            raise ValueError(f"budget: {self.budget} and budget_bytes: {self.budget_bytes}: give one of them")
        return self


class QuantizeGlowqSelected(QuantizeGlowq):
    """GlowQ where it pays: groups are ranked, and the first of them corrected as far as a budget of bytes goes.

    The selective form of GlowQ (arXiv:2603.25385). A larger budget keeps all that a smaller one does. The report draws
    what each further group takes from the output error, over the bytes that it adds, and marks the knee.
    """

    Params = GlowqSelectedParams
    title = "GlowQ-S quantisation"
    metrics = (*QuantizeGlowq.metrics, "groups_restored_share", "gain_share", "knee_bytes_share", "knee_gain_share")
    params: GlowqSelectedParams

    def score(self) -> Score:
        """What the parameters say."""
        return self.params.score

    def select(self, context: Context, restored: Sequence[Restored]) -> tuple[Sequence[Restored], Mapping[str, Any]]:
        """The best groups within the budget; the curve goes into the report."""
        from grafts.lowrank.selection import choose, cumulative, knee, ranked
        from stages.quantize.figures import draw_restoration

        order, sizes = ranked([each.score for each in restored]), [each.num_bytes for each in restored]
        chosen = choose(order, sizes, self._budget(sum(sizes)))
        costs, gains = cumulative(order, sizes), cumulative(order, [each.gain for each in restored])
        bend = knee(costs, gains)
        draw_restoration(context.output("report") / FIGURE, costs, gains, bend, len(chosen))
        context.metrics(
            groups_restored_share=_share(len(chosen), len(restored)),
            gain_share=_share(gains[len(chosen)], gains[-1]),
            knee_bytes_share=_share(costs[bend], costs[-1]),
            knee_gain_share=_share(gains[bend], gains[-1]),
        )
        told = {"scores": {each.members[0]: each.score for each in restored}, "knee": bend, "figures": [FIGURE]}
        curve = {"order": [restored[index].members[0] for index in order], "bytes": costs, "gains": gains}
        return [restored[index] for index in sorted(chosen)], {**told, "curve": curve}

    def _budget(self, full_bytes: int) -> int:
        if self.params.budget_bytes is not None:
            return self.params.budget_bytes
        return round((DEFAULT_BUDGET if self.params.budget is None else self.params.budget) * full_bytes)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
