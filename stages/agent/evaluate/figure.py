"""The figure of an agent's evaluation: what it gets done by kind of question, and how its episodes end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from stages.evaluate.figures import COLOURS, STYLE


def draw_outcomes(file: Path, tables: Mapping[str, Any]) -> None:
    """Draw success and F1 of each kind of question beside the endings, from the tables of a `summary`."""
    kinds, endings = tables["by_kind"], tables["endings"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for shift, (name, colour) in enumerate({"success": COLOURS["model"], "f1": COLOURS["baseline"]}.items()):
            places = [number + 0.38 * shift for number in range(len(kinds))]
            left.bar(places, [row[name] for row in kinds.values()], width=0.36, color=colour, label=name)
        left.set_xticks([number + 0.19 for number in range(len(kinds))], list(kinds))
        left.set(ylim=(0, 1), title="by kind of question")
        left.legend(frameon=False)
        right.barh([name or "unfinished" for name in endings], list(endings.values()), color=COLOURS["baseline"])
        right.set(title="how episodes end")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
