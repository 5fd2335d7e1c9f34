"""Findings as Markdown: the same tables for a part alone and for all of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.findings import Findings, Measure, Ratio, Spread
from pipelines.evidence import machine, versions

PACKAGES = ("python", "torch", "transformers", "ray", "deepspeed", "mlflow")


def circumstances() -> dict[str, Any]:
    """The machine as the figures saw it, and the versions that they are of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found = versions()
    return {
        "machine": {**machine(), "usable_cores": cores, "os": platform.platform(), "load": load},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: found[name] for name in PACKAGES if name in found},
    }


def heading(around: dict[str, Any], peers: dict[str, str]) -> str:
    """Two lines of `circumstances` and the peers' versions."""
    here = around["machine"]
    told = [
        here["processor"] or here["system"],
        f"{here['usable_cores']} of {here['cpus']} cores",
        f"{here['memory_bytes'] / 2**30:.0f} GiB",
        here["os"],
    ]
    if around["threads"]:
        told.append(f"OMP_NUM_THREADS={around['threads']}")
    if here["load"] is not None:
        told.append(f"load {here['load']:.1f} at the start")
    names = [f"{name} {version}" for name, version in (around["versions"] | peers).items()]
    return f"Machine: {', '.join(told)}.\nVersions: {', '.join(names)}."


def section(findings: Findings, *, with_ratios: bool = True) -> str:
    """Everything of one part."""
    parts = [f"{findings.setting}."]
    if findings.rows:
        parts.append(_figures(findings))
    if findings.ratios and with_ratios:
        parts.append(ratios([("", ratio) for ratio in findings.ratios]))
    parts += [*findings.notes, *(f"**Does not hold:** {claim}" for claim in findings.broken), findings.more]
    return "\n\n".join(part for part in parts if part)


def ratios(of: Iterable[tuple[str, Ratio]]) -> str:
    """A line a ratio, each with the part it is of; without that column when none is named."""
    listed = list(of)
    named = any(part for part, _ in listed)
    rows = []
    for part, ratio in listed:
        spread = Spread.of(ratio.values)
        between = f"{spread.least:.3g} – {spread.most:.3g}" if len(ratio.values) > 1 else ""
        cells = [ratio.what, str(ratio.measure), f"{ratio.ours} ÷ {ratio.theirs}", f"{spread.median:.3g}", between]
        rows.append([part, *cells] if named else cells)
    columns = ["task", "measure", "ratio of", "median", "min – max"]
    return markdown(["part", *columns] if named else columns, rows)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text cells."""
    lines = [list(columns), ["---"] * len(columns), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def told(values: Sequence[float]) -> str:
    """Median (least–most), or the value when all are one."""
    spread = Spread.of(values)
    middle = _number(spread.median)
    return middle if spread.least == spread.most else f"{middle} ({_number(spread.least)}–{_number(spread.most)})"


def _figures(findings: Findings) -> str:
    measures: list[Measure] = list(dict.fromkeys(measure for row in findings.rows for measure in row.figures))
    tasked = any(row.what for row in findings.rows)
    rows = []
    for row in findings.rows:
        cells = [told(row.figures[measure]) if measure in row.figures else "" for measure in measures]
        rows.append([row.what, row.who, *cells] if tasked else [row.who, *cells])
    names = ["task", "contender"] if tasked else ["contender"]
    return markdown([*names, *map(str, measures)], rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"
