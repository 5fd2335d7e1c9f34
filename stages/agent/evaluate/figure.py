"""The figure of an agent's evaluation: what it gets done by kind of question, and how its episodes end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.figures import COLOURS, figure


def draw_outcomes(file: Path, tables: Mapping[str, Any]) -> None:
    """Draw success and F1 of each kind of question beside the endings, from the tables of a `summary`."""
    kinds, endings = tables["by_kind"], tables["endings"]
    with figure(file, 7, 2.8) as made:
        left, right = made.subplots(1, 2, width_ratios=[3, 2])
        for shift, (name, colour) in enumerate({"success": COLOURS["model"], "f1": COLOURS["baseline"]}.items()):
            places = [number + 0.38 * shift for number in range(len(kinds))]
            left.bar(places, [row[name] for row in kinds.values()], width=0.36, color=colour, label=name)
        left.set_xticks([number + 0.19 for number in range(len(kinds))], list(kinds))
        left.set(ylim=(0, 1), title="by kind of question")
        left.legend(frameon=False)
        right.barh([name or "unfinished" for name in endings], list(endings.values()), color=COLOURS["baseline"])
        right.set(title="how episodes end")
