"""The table of all parts: what each took, every ratio, and every part's own table below."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts import place
from benchmarks.running import Outcome, span
from benchmarks.table import heading, markdown, ratios, section


def summary(outcome: Outcome) -> str:
    """One line of what came of a part."""
    taken = span(outcome.seconds)
    if outcome.state == "done":
        return f"done in {taken}"
    broken = outcome.findings.broken if outcome.findings else []
    return f"FAILED after {taken}: {'; '.join(broken) or outcome.told}"


def earlier(directory: Path, around: dict[str, Any], *, quick: bool) -> list[Outcome]:
    """What `table.json` in `directory` has; none when there is no such file.

    One table is of one machine and one set of versions: where those in the file are others, this exits and tells which.
    The load that `around` tells becomes the greater of both.
    """
    file = directory / "table.json"
    if not file.exists():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    there, now = _comparable(content), _comparable({**around, "quick": quick})
    if others := [f"{name} {there.get(name)} there, {now[name]} now" for name in now if there.get(name) != now[name]]:
        sys.exit(f"{file} has other figures than these would be: {'; '.join(others)}. Choose another --out")
    around["machine"]["load"] = max(around["machine"]["load"] or 0, content["machine"]["load"] or 0)
    return [Outcome.from_dict(part) for part in content["parts"]]


def write(directory: Path, around: dict[str, Any], outcomes: Sequence[Outcome], *, quick: bool) -> None:
    """`table.md` and `table.json` of what there is by now, in the order of the parts, each replaced in one step."""
    outcomes = sorted(outcomes, key=lambda outcome: place(outcome.name))
    content = {"quick": quick, **around, "parts": [outcome.to_dict() for outcome in outcomes]}
    _replace(directory / "table.json", json.dumps(content, indent=1) + "\n")
    _replace(directory / "table.md", page(around, outcomes, quick=quick))


def page(around: dict[str, Any], outcomes: Sequence[Outcome], *, quick: bool) -> str:
    """All of it as Markdown."""
    found = [(outcome, outcome.findings) for outcome in outcomes if outcome.findings]
    peers = {name: version for _, findings in found for name, version in findings.peers.items()}
    parts = ["# Benchmarks", heading(around, peers)]
    if quick:
        parts.append("**Quick: small shapes, few turns. This tells that everything works; the figures mean nothing.**")
    rows = [(outcome.name, f"`{outcome.command}`", outcome.began, summary(outcome)) for outcome in outcomes]
    parts.append(markdown(("part", "alone", "began", "outcome"), rows))
    if listed := [(outcome.name, ratio) for outcome, findings in found for ratio in findings.ratios]:
        parts += ["## Ratios", "Turn by turn in one run; ↑ more is better, ↓ less is better.", ratios(listed)]
    for outcome, findings in found:
        parts += [
            f"## {outcome.name}",
            f"`{outcome.command}`, {span(outcome.seconds)}",
            section(findings, with_ratios=False),
        ]
    return "\n\n".join(parts) + "\n"


def _comparable(content: dict[str, Any]) -> dict[str, Any]:
    machine = {name: value for name, value in content["machine"].items() if name != "load"}
    return {**machine, **content["versions"], "threads": content["threads"], "quick": content["quick"]}


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f"{file.suffix}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
