"""The Markdown that MLflow shows as a run's description: state, picture, and a table with links.

MLflow folds a description after about 100 pixels, so state and picture come first. It keeps hash links, and images from
the same server; it drops raw HTML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipelines.cli.format import LEADING
from pipelines.lineage.drawing import LABELS, Node, Status, draw
from pipelines.lineage.records import cut
from pipelines.lineage.redact import Redactor
from pipelines.lineage.view import REUSED, RunView, StageView
from pipelines.running.journal import Event
from pipelines.running.result import MARKS
from pipelines.spec.quantities import format_duration

PAGES = "workflowType=machine_learning"
"""Part of every address: a first visit without it shows MLflow's pages for agents, which know no models."""
TAG_LENGTH = 8000
NOTE_LENGTH = 7000
"""MLflow cuts a tag at 8000 characters, in the middle of a table row if need be."""
ORDER = ("failed", "cancelled", "running", "done", "cached", "kept", "waiting", "skipped", "left")
FOLLOWED = "Later: "
"""Begins the paragraph that tells which runs went on from this one."""
TABLE = "| | Stage | Method | Time | Figures |"


def picture(view: RunView) -> str:
    """The graph of the run as SVG."""
    nodes = [Node(stage.name, stage.uses, stage.upstream) for stage in view.stages.values()]
    return draw(nodes, {stage.name: Status(stage.state, stage.seconds) for stage in view.stages.values()})


def link(text: str, experiment: str, run: str) -> str:
    """A Markdown link to a run in the same MLflow."""
    return f"[{plain(text)}](#/experiments/{experiment}/runs/{run}?{PAGES})"


def plain(text: str) -> str:
    """`text` without meaning to Markdown, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)


def run_note(
    view: RunView,
    experiment: str,
    parent: str,
    children: Mapping[str, str],
    version: int,
    before: str = "",
    after: str = "",
) -> str:
    """The parent run's description. `version` makes the browser load a new picture.

    `before` tells which run this one goes back to, `after` which went on from it, as Markdown.
    """
    took = f" · {format_duration(view.seconds)}" if view.seconds is not None else ""
    address = f"get-artifact?path=dag.svg&run_uuid={parent}&v={version}"
    finished, chosen = view.count("done", *REUSED), len(view.stages) - view.count("left")
    counts = ", ".join(f"{view.count(state)} {LABELS.get(state, state)}" for state in ORDER if view.count(state))
    progress = "" if view.state == "done" else f"{finished} of {chosen} stages: "
    told = f" · {before}" if before else ""
    head = [
        f"{MARKS.get(view.state, '')} **{view.state}** · {progress}{counts}{took}{told}",
        "",
        f"[![dag]({address})]({address})",
        "",
        TABLE,
        "|---|---|---|---:|---|",
    ]
    rows = [_row(stage, experiment, children.get(stage.attempt_id)) for stage in _by_interest(view)]
    return with_followers(_fit(head, rows), after)


def with_followers(text: str, followers: str) -> str:
    """A run's description with its paragraph about later runs, in place of the one it has."""
    kept = [part for part in text.split("\n\n") if not part.startswith(FOLLOWED)]
    place = next((index for index, part in enumerate(kept) if part.startswith(TABLE)), len(kept))
    added = [f"{FOLLOWED}{followers}."] if followers else []
    return cut("\n\n".join([*kept[:place], *added, *kept[place:]]), TAG_LENGTH)


def stage_note(stage: StageView, event: Event, origin: str, models: Mapping[str, str], redactor: Redactor) -> str:
    """A stage's description: state, reason, error, what it read and made.

    `origin` links where a cached result came from; `models` are addresses of logged models by digest.
    """
    timed = event.get("seconds") is not None and event["state"] in ("done", "failed")
    took = f" · {format_duration(event['seconds'])}" if timed else ""
    attempt = f" · attempt {stage.attempt}" if stage.attempt > 1 else ""
    lines = [f"{MARKS.get(event['state'], '')} **{event['state']}** · `{stage.uses}`{took}{attempt}{origin}"]
    if event.get("reason"):
        lines += ["", f"Why: {plain(redactor.text(event['reason']))}"]
    lines += _error(event.get("error") or {}, redactor)
    read = [("read", f"{item['stage']}.{item['output']}", item) for item in event.get("inputs") or []]
    made = [("made", f"{stage.name}.{item['name']}", item) for item in event.get("outputs") or []]
    if read or made:
        lines += ["", "| | Artifact | Kind | Digest | Where |", "|---|---|---|---|---|"]
        lines += [_artifact_row(*row, models, redactor) for row in read + made]
    return cut("\n".join(lines), NOTE_LENGTH)


def _artifact_row(side: str, name: str, item: Event, models: Mapping[str, str], redactor: Redactor) -> str:
    address = models.get(item["digest"]) if item["kind"] == "model" else None
    shown = f"[{plain(name)}]({address})" if address else plain(name)
    where = redactor.text(item.get("uri") or "").replace("`", "'").replace("|", "%7C")
    return _cells(side, shown, item["kind"], f"`{item['digest'][:12]}`", f"`{where}`")


def _error(error: Mapping[str, str], redactor: Redactor) -> list[str]:
    lines: list[str] = []
    if error.get("message"):
        lines += ["", f"**{plain(redactor.text(error['message']))}**"]
    if error.get("fix"):
        lines += ["", f"Fix: {plain(redactor.text(error['fix']))}"]
    if error.get("tail"):
        # The end of a traceback says most, so the beginning is cut.
        tail = redactor.text(error["tail"])[-4000:].replace("```", "'''")
        lines += ["", "```", tail, "```"]
    return lines


def _by_interest(view: RunView) -> list[StageView]:
    """In the order of the file when all fit; a long list starts with what went wrong."""
    stages = list(view.stages.values())
    return stages if len(stages) <= 25 else sorted(stages, key=lambda stage: _rank(stage.state))


def _rank(state: str) -> int:
    return ORDER.index(state) if state in ORDER else len(ORDER)


def _row(stage: StageView, experiment: str, run: str | None) -> str:
    name = link(stage.name, experiment, run) if run else plain(stage.name)
    took = format_duration(stage.seconds) if stage.seconds is not None and stage.state in ("done", "failed") else ""
    telling = [key for key in LEADING if key in stage.metrics] or [key for key, value in stage.metrics.items() if value]
    figures = ", ".join(f"{plain(key)} {_figure(stage.metrics[key])}" for key in telling[:4])
    state = f"{MARKS.get(stage.state, '')} {LABELS.get(stage.state, stage.state)}"
    return _cells(_unbroken(state), name, f"`{stage.uses}`", _unbroken(took), figures)


def _unbroken(text: str) -> str:
    """`text` that a narrow column does not break."""
    return text.replace(" ", "&nbsp;")


def _figure(value: float) -> str:
    whole = abs(value) >= 1000 and float(value).is_integer()
    return f"{int(value):,}" if whole else f"{value:.4g}"


def _cells(*cells: str) -> str:
    """A table row; MLflow's tables have no space between columns, so each cell brings its own."""
    return "| " + "&emsp; | ".join(cells) + " |"


def _fit(head: list[str], rows: list[str]) -> str:
    lines, room = list(head), NOTE_LENGTH - sum(len(line) + 1 for line in head) - 60
    for number, row in enumerate(rows):
        room -= len(row) + 1
        if room < 0:
            return "\n".join([*lines, "", f"… and {len(rows) - number} more stages: see the child runs."])
        lines.append(row)
    return "\n".join(lines)
