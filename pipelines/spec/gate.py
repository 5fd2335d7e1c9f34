"""Gates: `expect: {perplexity_ratio: "< 1.5"}` makes a stage fail when what it measured does not hold.

The bound is a number, another stage's metric, or a multiple of one: `"<= 1.05 * ${baseline.perplexity}"`. A gate is
read, never evaluated as code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
LONGEST: Final = 1_000
"""Characters of a gate: what is longer is none, and would take long to read."""
_NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_REFERENCE: Final = r"\$\{{\s*(?P<stage{0}>[^{{}}]+?)\.(?P<metric{0}>[\w/-]+)\s*\}}"
_GATE: Final = re.compile(
    rf"\s*(?P<comparison><=|>=|==|<|>)\s*"
    rf"(?:(?P<factor>{_NUMBER})(?:\s*\*\s*{_REFERENCE.format('')})?"
    rf"|{_REFERENCE.format('2')}(?:\s*\*\s*(?P<factor2>{_NUMBER}))?)\s*"
)

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Gate:
    """A bound on one metric: `factor`, or `factor` times the metric `of[1]` of stage `of[0]`."""

    metric: str
    comparison: str
    factor: float
    of: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.metric} {self.text}"

    @property
    def text(self) -> str:
        """The gate as written in a file, in its plainest form."""
        if self.of is None:
            return f"{self.comparison} {_exact(self.factor)}"
        times = "" if self.factor == 1 else f"{_exact(self.factor)} * "
        return f"{self.comparison} {times}${{{self.of[0]}.{self.of[1]}}}"

    def failure(self, metrics: Metrics, others: Mapping[str, Metrics] | None = None) -> str | None:
        """Why the gate does not hold, or None; `others` has other stages' metrics. What is missing, and NaN, fail."""
        if self.metric not in metrics:
            return (
                f"expected {self}, but the stage reports no {self.metric!r}; it reports: {', '.join(sorted(metrics))}"
            )
        value, bound, told = metrics[self.metric], self.factor, ""
        if self.of is not None:
            stage, name = self.of
            known = (others or {}).get(stage, {})
            if name not in known:
                return f"expected {self}, but {stage} reports no {name!r}; it reports: {', '.join(sorted(known))}"
            bound = self.factor * known[name]
            told = f", and the bound is {_beside(bound, value)}"
        if not math.isnan(value) and COMPARE[self.comparison](value, bound):
            return None
        return f"expected {self}, found {self.metric} = {_beside(value, bound)}{told}"


def _exact(number: float) -> str:
    """The number in as few digits as give it back."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _beside(number: float, other: float) -> str:
    """The number in six digits, unless those are the same as those of the `other`, which differs."""
    short = f"{number:.6g}"
    return _exact(number) if short == f"{other:.6g}" else short


def parse_gate(metric: str, text: str) -> Gate:
    """Read `text` such as `< 1.5` or `<= 1.05 * ${baseline.perplexity}`. Raises ValueError."""
    match = _GATE.fullmatch(text) if len(text) <= LONGEST else None
    if not match:
        raise ValueError(
            f"{text!r} is not a gate; write a comparison and a number, such as '< 1.5', "
            "or a multiple of another stage's metric, such as '<= 1.05 * ${baseline.perplexity}'"
        )
    stage, name = match["stage"] or match["stage2"], match["metric"] or match["metric2"]
    factor = float(match["factor"] or match["factor2"] or 1)
    return Gate(metric, match["comparison"], factor, (stage, name) if stage else None)
