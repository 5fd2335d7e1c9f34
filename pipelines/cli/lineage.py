"""`regraft lineage`: the walk from weights to data, as a tree or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text
from rich.tree import Tree

from pipelines.cli.console import new_console
from pipelines.cli.format import LEADING, format_metrics
from pipelines.cli.options import print_json
from pipelines.housekeeping.ancestry import Ancestry, Edge, Step
from pipelines.planning.canonical import is_digest
from pipelines.spec.quantities import format_bytes, format_duration

DIGITS = 8
LONGEST_VALUE = 48
MOST_SOURCES = 4


def show_lineage(store: str, what: str, *, as_json: bool) -> None:
    """Print where an artifact of the store at `store`, or a directory, comes from. Raises UserError."""
    from pipelines.housekeeping.ancestry import trace
    from pipelines.housekeeping.catalogue import Catalogue
    from pipelines.housekeeping.directory import LINEAGE, Traced, trace_directory
    from pipelines.housekeeping.reference import find_artifact
    from pipelines.store import open_store

    directory = Path(what)
    if directory.is_dir():
        known = "://" in store or Path(store).is_dir()
        carries_note = (directory / LINEAGE).is_file()
        catalogue = Catalogue.read(open_store(store)) if known and not carries_note else None
        found = trace_directory(directory, catalogue)
    else:
        catalogue = Catalogue.read(open_store(store))
        found = Traced(trace(catalogue, find_artifact(catalogue, what)), "store", ())
    if as_json:
        content = {**found.ancestry.to_json(), "found_by": found.by, "differs": list(found.differs)}
        print_json(content)
        return
    console = new_console()
    console.print(draw(found.ancestry))
    for text in found.differs[:12]:
        console.print(Text(f"not as published: {text}", "yellow"))


def draw(ancestry: Ancestry) -> Tree:
    """The walk as a tree: a step is told once, and referred to after that."""
    told: set[str] = set()
    root = Tree(_told(ancestry.step, ancestry.output), guide_style="dim")
    told.add(ancestry.key)
    waiting: list[tuple[Tree, Step]] = [(root, ancestry.step)]
    while waiting:
        branch, step = waiting.pop(0)
        for edge in step.inputs:
            _hang(branch, edge, ancestry, told, waiting)
        for source in _sources(step):
            branch.add(source)
    return root


def _hang(branch: Tree, edge: Edge, ancestry: Ancestry, told: set[str], waiting: list[tuple[Tree, Step]]) -> None:
    maker = ancestry.steps.get(edge.key)
    label = Text(f"{edge.name} ← ", "dim")
    if maker is None:
        branch.add(label + Text(f"content {edge.digest[:DIGITS]}, made by nothing in this store", "yellow"))
    elif maker.key in told:
        above = Text(f"  {maker.key[:DIGITS]}  ↑ above", "dim")
        branch.add(label + Text(f"{maker.stage}.{edge.output}", "bold") + above)
    else:
        told.add(maker.key)
        waiting.append((branch.add(label + _told(maker, edge.output)), maker))


def _told(step: Step, output: str) -> Text:
    made = step.outputs[output]
    text = Text(f"{step.stage}.{output}", "bold") + Text(f"  {step.method}", "cyan")
    text += Text(f"  {format_bytes(made.bytes)}, key {step.key[:DIGITS]}", "default")
    if step.gone:
        text += Text("  removed from the store", "yellow")
    if values := changes(step):
        text += Text(f"\n{values}", "green")
    if figures := {name: value for name, value in step.metrics.items() if value or name in LEADING}:
        text += Text(f"\n{format_metrics(figures, most=4)}", "default")
    if step.drift:
        text += Text(f"\ncode changed since, accepted: {step.drift.get('reason', '')}", "yellow")
    return text + Text(f"\n{origin(step)}", "dim")


def changes(step: Step) -> str:
    """What was told to the method that it does not do by itself."""
    values = {**step.changed, **({"seed": step.seed} if step.seed else {})}
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def origin(step: Step) -> str:
    """Moment, cost, code, commit and run, on one line."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(step.started)) if step.started else ""
    commit = f"commit {step.commit[:8]}{' with changes' if step.commit.endswith('+') else ''}" if step.commit else ""
    code = f"code {step.code[:DIGITS]}" if step.code else ""
    parts = (when, format_duration(step.seconds), code, commit, f"run {step.run}" if step.run else "")
    return " · ".join(part for part in parts if part)


def _sources(step: Step) -> Iterator[Text]:
    """What came from outside; many files of one source are told as one."""
    declared = step.declared.get("source", "")
    licence = f", licence {step.declared['licence']}" if step.declared.get("licence") else ""
    many = len(step.sources) > MOST_SOURCES
    entries = [(f"{len(step.sources)} sources", "")] if many else list(step.sources.items())
    for name, source in entries:
        content = f"content {source[:DIGITS]}" if is_digest(source) else source
        known = [part for part in dict.fromkeys((declared, content)) if part]
        yield Text(f"{name} ⇐ ", "dim") + Text(", ".join(known), "magenta") + Text(licence, "dim")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
