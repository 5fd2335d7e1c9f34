"""Quantised models side by side: what each setting gives for the bytes it takes. Pure, from their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from stages.artifacts import Report
from stages.errors import UserError
from stages.quantize.awq import QuantizeAwq
from stages.quantize.glowq import QuantizeGlowq
from stages.quantize.glowq_s import DEFAULT_BUDGET, QuantizeGlowqSelected
from stages.quantize.gptq import QuantizeGptq
from stages.quantize.mixed import QuantizeMixed
from stages.quantize.rtn import QuantizeRoundToNearest
from stages.quantize.stage import Quantize

FILE: Final = "comparison.md"
BASES: Final = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ"}
STAGES: Final[Mapping[str, type[Quantize]]] = {
    "RTN": QuantizeRoundToNearest,
    "GPTQ": QuantizeGptq,
    "AWQ": QuantizeAwq,
    "GlowQ": QuantizeGlowq,
    "GlowQ-S": QuantizeGlowqSelected,
    "mixed bits": QuantizeMixed,
}
FIGURES: Final = ("bytes_after", "child_perplexity", "kl_to_parent", "top1_agreement", "parent_perplexity")


@dataclass(frozen=True)
class Arm:
    """One quantised model, as its report tells of it."""

    method: str
    """One of `STAGES`."""
    base: str
    """RTN, GPTQ or AWQ: what its codes were found by."""
    label: str
    """What it is, in short."""
    params: Mapping[str, Any]
    """All parameters that decide the result: arms that differ by the seed alone have the same."""
    figures: Mapping[str, float]
    computed_in: str = ""
    """Type that it was measured in."""

    @classmethod
    def of(cls, report: Report) -> Arm:
        """Raises UserError when the report is of something else, or nothing was measured."""
        content = report.content
        metrics, details = content["metrics"], content["details"]
        method = next((name for name, stage in STAGES.items() if stage.title == content.get("title")), None)
        if method is None:
            raise UserError(
                f"the report {content.get('title')!r} is not of a quantised model",
                where=report.name or "reports",
                fix=f"give reports of quantize.*: {', '.join(stage.title for stage in STAGES.values())}",
            )
        missing = [name for name in FIGURES if name not in metrics]
        if missing:
            raise UserError(
                f"{report.name or 'a report'} does not tell {', '.join(missing)}",
                where="reports",
                fix="give the stage that made it the input `heldout`, so that it measures its model",
            )
        params = {name: details[name] for name in STAGES[method].Params.model_fields if name in details}
        base = method if method in BASES.values() else BASES[params["base"]]
        figures = {name: metrics[name] for name in FIGURES}
        return cls(method, base, _label(method, base, params, metrics), params, figures, details.get("computed_in", ""))

    def is_base_of(self, other: Arm) -> bool:
        """Whether `other` is this one with low-rank corrections: what both were told, they were told alike."""
        common = self.params.keys() & other.params.keys()
        same = all(self.params[name] == other.params[name] for name in common)
        return other.method in ("GlowQ", "GlowQ-S") and self.method == other.base and same


@dataclass(frozen=True)
class Setting:
    """All models made alike but for the seed."""

    arms: tuple[Arm, ...]
    label: str
    """What sets it apart."""

    @property
    def first(self) -> Arm:
        """Any of them."""
        return self.arms[0]

    def mean(self, figure: str) -> float:
        """Over the seeds."""
        return fmean(arm.figures[figure] for arm in self.arms)

    def all(self, figure: str) -> list[float]:
        """One for each seed."""
        return sorted(arm.figures[figure] for arm in self.arms)


def settings(arms: Sequence[Arm]) -> list[Setting]:
    """The arms by what sets them apart, the smallest first. Raises UserError when they cannot be compared."""
    _require_one_measure(arms)
    alike: dict[str, list[Arm]] = {}
    for arm in arms:
        alike.setdefault(json.dumps([arm.method, dict(arm.params)], sort_keys=True), []).append(arm)
    firsts = [group[0] for group in alike.values()]
    made = [Setting(tuple(group), _told_apart(group[0], firsts)) for group in alike.values()]
    return sorted(made, key=lambda each: (each.mean("bytes_after"), each.mean("child_perplexity"), each.label))


def _require_one_measure(arms: Sequence[Arm]) -> None:
    types = {arm.computed_in for arm in arms}
    if len(types) > 1:
        raise UserError(
            f"some models were measured in {min(types) or 'an unknown type'}, others in {max(types)}",
            where="reports",
            fix="measure all of them on one kind of machine, or store the parent as float32",
        )
    measured = {round(arm.figures["parent_perplexity"], 6) for arm in arms}
    if len(measured) > 1:
        raise UserError(
            f"the parent has perplexity {min(measured)} in one report and {max(measured)} in another",
            where="reports",
            fix="compare models of one parent, measured on the same `heldout` with equal `heldout_windows`",
        )


def _told_apart(arm: Arm, others: Sequence[Arm]) -> str:
    """The label, with the parameters that tell it from others that have the same."""
    same = [other for other in others if other.method == arm.method and other.label == arm.label]
    differing = [name for name in arm.params if any(other.params.get(name) != arm.params[name] for other in same)]
    return ", ".join([arm.label, *(f"{name} {arm.params[name]}" for name in differing)])


def front(made: Sequence[Setting]) -> list[Setting]:
    """Those of `settings` that no other beats in mean perplexity with as few bytes."""
    kept: list[Setting] = []
    for each in made:
        if not kept or each.mean("child_perplexity") < kept[-1].mean("child_perplexity"):
            kept.append(each)
    return kept


def corrections_ahead(made: Sequence[Setting]) -> tuple[int, int]:
    """How many settings with corrections beat their base with every seed, of how many whose base is there to beat."""
    pairs = [
        (base.all("child_perplexity"), each.all("child_perplexity"))
        for base in made
        for each in made
        if base.first.is_base_of(each.first)
    ]
    return sum(max(corrected) < min(base) for base, corrected in pairs), len(pairs)


def rows(made: Sequence[Setting]) -> list[list[str]]:
    """A table, its head first: size, then distance to the parent, mean over the seeds with the range of the first."""
    best = front(made)
    head = ["", "MiB", "perplexity (least–most)", "of parent's", "KL", "top-1 agreement", "seeds", "on the front"]
    return [head, *(_row(each, each in best) for each in made)]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The rows as a table in Markdown."""
    head, *rest = table
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)) + "\n"


def _row(each: Setting, best: bool) -> list[str]:
    perplexities = each.all("child_perplexity")
    spread = f" ({perplexities[0]:.2f}–{perplexities[-1]:.2f})" if len(perplexities) > 1 else ""
    return [
        each.label,
        f"{each.mean('bytes_after') / 2**20:.1f}",
        f"{each.mean('child_perplexity'):.2f}{spread}",
        f"{each.mean('child_perplexity') / each.mean('parent_perplexity'):.3f}",
        f"{each.mean('kl_to_parent'):.3f}",
        f"{each.mean('top1_agreement'):.3f}",
        str(len(perplexities)),
        "yes" if best else "",
    ]


def _label(method: str, base: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    grid = f"{params['bits']} bits, groups of {params['group_size']}" + (", symmetric" if params["symmetric"] else "")
    parts = [grid, base]
    if method == "mixed bits":
        parts.append(f"{params['added_bytes_ratio']:.0%} more bytes as more bits")
    if method in ("GlowQ", "GlowQ-S"):
        parts.append(f"{params['solver']}, rank {metrics['rank']:.0f}")
    if method == "GlowQ-S":
        share = DEFAULT_BUDGET if params.get("budget") is None else params["budget"]
        size = f"{share:.0%}" if params.get("budget_bytes") is None else f"{params['budget_bytes']:,} bytes"
        parts.append(f"GlowQ-S with {size} of the corrections")
    return ", ".join(parts)
