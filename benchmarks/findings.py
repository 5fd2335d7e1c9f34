"""The one form in which every part hands over what it measured: figures turn by turn, and ratios between contenders."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

ARROWS: Final = {"more": "↑", "less": "↓"}


@dataclass(frozen=True)
class Measure:
    """A quantity with its unit, and which way is good."""

    name: str
    better: Literal["more", "less", ""] = ""

    def __str__(self) -> str:
        return " ".join([self.name, *ARROWS.get(self.better, "")])


SECONDS = Measure("s", "less")
CPU_SECONDS = Measure("CPU s", "less")
PEAK_MIB = Measure("peak MiB", "less")


@dataclass(frozen=True)
class Spread:
    """Least, median and most of one figure."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Row:
    """What one contender showed at one task: for each measure a value a turn, in the order of the turns."""

    what: str
    who: str
    figures: Mapping[Measure, tuple[float, ...]]


@dataclass(frozen=True)
class Ratio:
    """`ours` over `theirs`, turn by turn."""

    what: str
    measure: Measure
    ours: str
    theirs: str
    values: tuple[float, ...]


@dataclass
class Findings:
    """All that a part found out."""

    setting: str
    """What was measured on: model, sizes, types, turns."""
    peers: dict[str, str] = field(default_factory=dict)
    """Versions of what it was measured beside, by name."""
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Claims that did not hold, such as equal results; the part has failed then."""
    more: str = ""
    """Markdown of what is no figure."""

    def add(self, what: str, who: str, figures: Mapping[Measure, float | Sequence[float]]) -> None:
        """A row. A lone number is one that has no turns, such as bytes of a file."""
        turns = {
            measure: (float(values),) if isinstance(values, (int, float)) else tuple(map(float, values))
            for measure, values in figures.items()
        }
        self.rows.append(Row(what, who, turns))

    def compare(self, ours: str, theirs: str, *measures: Measure) -> None:
        """Add the ratios of two contenders at every task that both have, by the measures that both have.

        Turns are paired. Where one had fewer turns than the other, there is one ratio, that of the medians.
        """
        found = {(row.what, row.who): row.figures for row in self.rows}
        for what in dict.fromkeys(row.what for row in self.rows):
            mine, others = found.get((what, ours), {}), found.get((what, theirs), {})
            for measure in measures:
                if measure in mine and measure in others and all(others[measure]):
                    values = _ratios(mine[measure], others[measure])
                    self.ratios.append(Ratio(what, measure, ours, theirs, values))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {
                "what": row.what,
                "who": row.who,
                "figures": [{**asdict(measure), "values": values} for measure, values in row.figures.items()],
            }
            for row in self.rows
        ]
        return {**vars(self), "rows": rows, "ratios": [asdict(ratio) for ratio in self.ratios]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Findings:
        """What `to_dict` gave."""
        rows = [
            Row(
                row["what"],
                row["who"],
                {Measure(each["name"], each["better"]): tuple(each["values"]) for each in row["figures"]},
            )
            for row in content["rows"]
        ]
        ratios = [
            Ratio(**{**ratio, "measure": Measure(**ratio["measure"]), "values": tuple(ratio["values"])})
            for ratio in content["ratios"]
        ]
        return cls(**{**content, "rows": rows, "ratios": ratios})


def _ratios(mine: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    if len(mine) == len(others):
        return tuple(one / other for one, other in zip(mine, others, strict=True))
    return (statistics.median(mine) / statistics.median(others),)
