"""Quantised models side by side: what each setting gives for the bytes it takes. Pure, from their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from stages.artifacts import Report
from stages.errors import UserError

FILE: Final = "comparison.md"
BASES: Final = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ"}
TITLES: Final = {
    "Round-to-nearest quantisation": "RTN",
    "GPTQ quantisation": "GPTQ",
    "AWQ quantisation": "AWQ",
    "GlowQ quantisation": "GlowQ",
    "GlowQ-S quantisation": "GlowQ-S",
    "Mixed-bit quantisation": "mixed bits",
}
"""The stages that a report can be of, by its title."""
FIGURES: Final = ("bytes_after", "perplexity", "kl_to_parent", "top1_agreement", "parent_perplexity")


@dataclass(frozen=True)
class Arm:
    """One quantised model, as its report tells of it."""

    method: str
    grid: tuple[int, int, bool]
    """Bits, group size, whether symmetric."""
    base: str
    """RTN, GPTQ or AWQ: what its codes were found by."""
    extra: str
    """What was added to the base; empty for nothing."""
    figures: Mapping[str, float]

    @classmethod
    def of(cls, report: Report) -> Arm:
        """Raises UserError when the report is of something else, or nothing was measured."""
        content = report.content
        metrics, details, method = content["metrics"], content["details"], TITLES.get(content.get("title"))
        if method is None:
            raise UserError(
                f"the report {content.get('title')!r} is not of a quantised model",
                where=report.name or "reports",
                fix=f"give reports of quantize.*; they are called {', '.join(TITLES)}",
            )
        missing = [name for name in FIGURES if name not in metrics]
        if missing:
            raise UserError(
                f"{report.name or 'a report'} does not tell {', '.join(missing)}",
                where="reports",
                fix="give the stage that made it the input `heldout`, so that it measures its model",
            )
        base = method if method in BASES.values() else BASES[details["base"]]
        grid = details["bits"], details["group_size"], details["symmetric"]
        return cls(method, grid, base, _extra(method, details, metrics), {name: metrics[name] for name in FIGURES})

    @property
    def corrected(self) -> bool:
        """Whether low-rank corrections were added."""
        return self.method in ("GlowQ", "GlowQ-S") and bool(self.extra)


@dataclass(frozen=True)
class Setting:
    """All models made alike but for the seed."""

    arms: tuple[Arm, ...]

    @property
    def first(self) -> Arm:
        """Any of them."""
        return self.arms[0]

    @property
    def label(self) -> str:
        """What sets it apart."""
        bits, size, symmetric = self.first.grid
        grid = f"{bits} bits, groups of {size}" + (", symmetric" if symmetric else "")
        return ", ".join(filter(None, (grid, self.first.base, self.first.extra)))

    def mean(self, figure: str) -> float:
        """Over the seeds."""
        return fmean(arm.figures[figure] for arm in self.arms)

    def all(self, figure: str) -> list[float]:
        """One for each seed."""
        return sorted(arm.figures[figure] for arm in self.arms)


def settings(arms: Sequence[Arm]) -> list[Setting]:
    """The arms by what sets them apart, the smallest first. Raises UserError when they were measured on other text."""
    measured = {round(arm.figures["parent_perplexity"], 6) for arm in arms}
    if len(measured) > 1:
        raise UserError(
            f"the parent has perplexity {min(measured)} in one report and {max(measured)} in another",
            where="reports",
            fix="compare models of one parent, measured on the same `heldout` with equal `heldout_windows`",
        )
    found: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        found.setdefault((arm.method, arm.grid, arm.base, arm.extra), []).append(arm)
    made = [Setting(tuple(alike)) for alike in found.values()]
    return sorted(made, key=lambda each: (each.mean("bytes_after"), each.mean("perplexity"), each.label))


def front(made: Sequence[Setting]) -> list[Setting]:
    """Those of `settings` that no other beats in mean perplexity with as few bytes."""
    kept: list[Setting] = []
    for each in made:
        if not kept or each.mean("perplexity") < kept[-1].mean("perplexity"):
            kept.append(each)
    return kept


def corrections_ahead(made: Sequence[Setting]) -> tuple[int, int]:
    """How many settings with corrections beat their base with every seed, of how many whose base is there to beat."""
    bases = {(each.first.base, each.first.grid): each for each in made if each.first.method == each.first.base}
    pairs = [(each, bases.get((each.first.base, each.first.grid))) for each in made if each.first.corrected]
    known = [(each, base) for each, base in pairs if base is not None]
    return sum(max(each.all("perplexity")) < min(base.all("perplexity")) for each, base in known), len(known)


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
    perplexities = each.all("perplexity")
    spread = f" ({perplexities[0]:.2f}–{perplexities[-1]:.2f})" if len(perplexities) > 1 else ""
    return [
        each.label,
        f"{each.mean('bytes_after') / 2**20:.1f}",
        f"{each.mean('perplexity'):.2f}{spread}",
        f"{each.mean('perplexity') / each.mean('parent_perplexity'):.3f}",
        f"{each.mean('kl_to_parent'):.3f}",
        f"{each.mean('top1_agreement'):.3f}",
        str(len(perplexities)),
        "yes" if best else "",
    ]


def _extra(method: str, details: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    if method == "mixed bits":
        return f"{metrics['upgraded_share']:.0%} of the linears in more bits"
    if method not in ("GlowQ", "GlowQ-S") or not metrics["rank"]:
        return ""
    solver = f"{details['solver']}, rank {metrics['rank']:.0f}"
    return solver if method == "GlowQ" else f"{solver} in {metrics['groups_restored_share']:.0%} of the groups"
