"""`regraft plan` for people: a line a stage, or every reason in full."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pipelines.cli.console import new_console
from pipelines.cli.planning import Problems
from pipelines.cli.tables import grid
from pipelines.planning.durations import Expected
from pipelines.planning.plan import Plan, Step
from pipelines.spec.quantities import format_duration

MARKS: Final = {
    "cached": ("=", "blue", "cached"),
    "run": ("▶", "cyan", "run"),
    "unknown": ("?", "yellow", "run?"),
    "kept": ("~", "yellow", "kept"),
    "left": ("·", "dim", "left"),
}
VERDICTS: Final = {"cached": "HIT", "run": "RUN", "unknown": "RUN?", "kept": "KEPT", "left": "LEFT"}


def print_plan(plan: Plan, expected: Expected, problems: Problems, *, why: bool) -> None:
    """Print the plan: a line a stage, or with `why` every reason in full."""
    console = new_console()
    console.print(_reasons(plan, expected, problems) if why else _table(plan, expected, problems))
    console.print(Text(f"\n{_summary(plan, expected)}", "dim"))
    if any(len(step.why) > (2 if step.state == "kept" else 1) for step in plan.steps.values()) and not why:
        console.print(Text("--why tells every reason", "dim"))


def _table(plan: Plan, expected: Expected, problems: Problems) -> RenderableType:
    table = grid("", "stage", "method", "", "expected", "why")
    for name, step in _listed(plan):
        mark, style, word = MARKS[step.state]
        reasons = [*_in_vain(problems, name), *(Text(text) for text in _brief(step))]
        clock = Text(_clock(expected, name), "dim")
        cells = Text(mark, style), Text(name, style), step.spec.uses, Text(word, style), clock
        table.add_row(*cells, Text("\n").join(reasons))
    return table


def _reasons(plan: Plan, expected: Expected, problems: Problems) -> RenderableType:
    lines: list[Text] = []
    for name, step in _listed(plan):
        _, style, _ = MARKS[step.state]
        clock = _clock(expected, name)
        head = Text(f"{VERDICTS[step.state]:<5}", style) + Text(name, f"bold {style}")
        lines.append(head + Text(f"  {step.spec.uses}{f'  {clock}' if clock else ''}", "dim"))
        lines.extend(Text("     ") + text for text in (*_in_vain(problems, name), *(Text(r) for r in step.reasons)))
    return Group(*lines)


def _listed(plan: Plan) -> Iterable[tuple[str, Step]]:
    """The stages that were chosen, or stand above one that was."""
    return ((name, step) for name, step in plan.steps.items() if plan.chosen.role(name) != "left")


def _in_vain(problems: Problems, stage: str) -> Iterable[Text]:
    if stage in problems:
        message, fix = problems[stage]
        yield Text(f"can never run: {message}; {fix}", "red")


def _brief(step: Step) -> list[str]:
    """The first reason, two of a stage that is kept, and how many more there are."""
    most = 2 if step.state == "kept" else 1
    shown, rest = step.reasons[:most], len(step.reasons) - most
    return ["; ".join(shown) + (f"; and {rest} more" if rest > 0 else "")]


def _clock(expected: Expected, stage: str) -> str:
    return f"~{format_duration(expected.stages[stage])}" if stage in expected.stages else ""


def _summary(plan: Plan, expected: Expected) -> str:
    counts = {
        "cached": plan.count("cached"),
        "to run": plan.count("run"),
        "to run if inputs change": plan.count("unknown"),
        "taken as they are": plan.count("kept"),
        "not chosen": plan.count("left"),
    }
    told = [f"{count} {what}" for what, count in counts.items() if count]
    if expected.stages:
        first_times = len(expected.unknown)
        rest = f", without {first_times} that never ran" if first_times else ""
        told.append(f"about {format_duration(expected.total_seconds)} along the longest path{rest}")
    return ", ".join(told)
