"""Gates: `expect: {perplexity_ratio: "< 1.5"}` makes a stage fail when what it measured does not hold.

A gate is read, never evaluated as code.
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
_GATE: Final = re.compile(r"\s*(<=|>=|==|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Gate:
    """A bound on one metric."""

    metric: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.bound:g}"

    def failure(self, metrics: Mapping[str, float]) -> str | None:
        """Why the gate does not hold, or None. A missing metric and NaN both fail."""
        if self.metric not in metrics:
            return (
                f"expected {self}, but the stage reports no {self.metric!r}; it reports: {', '.join(sorted(metrics))}"
            )
        value = metrics[self.metric]
        if not math.isnan(value) and COMPARE[self.comparison](value, self.bound):
            return None
        return f"expected {self}, found {self.metric} = {value:.6g}"


def parse_gate(metric: str, text: str) -> Gate:
    """Read `text` such as `< 1.5`. Raises ValueError."""
    match = _GATE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a gate; write a comparison and a number, such as '< 1.5' or '>= 0.9'")
    return Gate(metric, match[1], float(match[2]))
