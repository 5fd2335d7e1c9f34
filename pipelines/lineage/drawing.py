"""Draws the stages of a run as an SVG: pure, without dependencies, the same picture for the same input.

Boxes bring their own light background and edges are mid-grey, so the picture reads on light and on dark pages; states
differ by mark as well as by colour.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pipelines.lineage.layout import Layout, arrange
from pipelines.spec.matrix import stage_base
from pipelines.spec.quantities import format_duration
from stages.artifacts import arm_values

HEIGHT = 36
MARGIN = 3
COLUMN_GAP = 20
LEAST_WIDTH = 900
"""The picture takes the width of the page: a wide graph shrinks to fit; this keeps a small one from being blown up."""
FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Node:
    """A stage as the picture shows it; upstream names that are not in the picture are left out."""

    name: str
    method: str
    upstream: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """How a stage stands: one of the states of `PAINT`, and how long it took."""

    state: str = "waiting"
    seconds: float | None = None


@dataclass(frozen=True)
class Paint:
    """How a state looks: colours of border and ground, and a mark drawn in a circle of radius 7."""

    stroke: str
    ground: str
    mark: str


PAINT = {
    "waiting": Paint("#8c959f", "#f6f8fa", ""),
    "running": Paint("#bf8700", "#fff8e1", "M-2.2,-3.6 L3.8,0 L-2.2,3.6 Z"),
    "done": Paint("#1a7f37", "#eafbef", "M-3.4,0.2 L-1,2.7 L3.5,-2.5"),
    "cached": Paint("#0969da", "#e8f3ff", "M3.2,-1.6 A3.5,3.5 0 1 0 3.4,1.2 M3.6,-3.8 L3.3,-1.3 L0.9,-1.9"),
    "kept": Paint("#57606a", "#eef1f4", "M-3,-1.7 L3,-1.7 M-3,1.7 L3,1.7"),
    "left": Paint("#afb8c1", "#ffffff", ""),
    "failed": Paint("#cf222e", "#ffebe9", "M-2.7,-2.7 L2.7,2.7 M2.7,-2.7 L-2.7,2.7"),
    "skipped": Paint("#8c959f", "#f6f8fa", "M-3,0 L3,0"),
    "cancelled": Paint("#8250df", "#f5eeff", "M-2.4,-2.4 L2.4,-2.4 L2.4,2.4 L-2.4,2.4 Z"),
}


LABELS = {"left": "not chosen"}
"""What people read, where it is not the name of the state."""


def draw(nodes: Sequence[Node], states: Mapping[str, Status]) -> str:
    """The graph as a self-contained SVG document."""
    names = {node.name for node in nodes}
    upstream = {node.name: [up for up in dict.fromkeys(node.upstream) if up in names] for node in nodes}
    layout = arrange(upstream, HEIGHT)
    width = _box_width(nodes)
    total_width = max(layout.num_layers * (width + COLUMN_GAP) - COLUMN_GAP + 2 * MARGIN, LEAST_WIDTH)
    total_height = round(layout.height + 2 * MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="100%" '
        f'viewBox="0 0 {total_width} {total_height}" font-family="{FONT}" role="img">',
        f"<title>{_caption(nodes, states)}</title>",
        '<g fill="none" stroke="#8c959f" stroke-width="1.3" stroke-linecap="round" stroke-linejoin="round">',
        *(_edge(layout, edge, width) for edge in layout.routes),
        "</g>",
        *(_box(node, states.get(node.name, Status()), layout.place[node.name], width) for node in nodes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def label(name: str) -> str:
    """A stage's name, of an arm with its values alone: `learn[credit=grpo,seed=0]` as `learn[grpo, 0]`."""
    values = arm_values(name)
    return f"{stage_base(name)}[{values}]" if values else name


def shorten(text: str, length: int) -> str:
    """Cut in the middle: the arms of a matrix differ at the end of their names."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def _box_width(nodes: Sequence[Node]) -> int:
    longest = max((max(len(label(node.name)), 0.82 * len(f"{node.method} · 10 m 00 s")) for node in nodes), default=0)
    return round(33 + 6.6 * min(max(longest, 12), 20))


def _x(layer: int, width: int) -> int:
    return MARGIN + layer * (width + COLUMN_GAP)


def _edge(layout: Layout, edge: tuple[str, str], width: int) -> str:
    """From the right of one box to the left of the other; straight across the columns passed on the way."""
    cells = layout.routes[edge]
    path = [f"M{_x(cells[0][0], width) + width},{cells[0][1] + MARGIN:.1f}"]
    for (layer, above), (_, below) in itertools.pairwise(cells):
        left, right = _x(layer, width) + width, _x(layer + 1, width)
        middle = (left + right) / 2
        y0, y1 = above + MARGIN, below + MARGIN
        path.append(f"L{left},{y0:.1f} C{middle:g},{y0:.1f} {middle:g},{y1:.1f} {right},{y1:.1f}")
    x, y = _x(cells[-1][0], width), cells[-1][1] + MARGIN
    return f'<path d="{" ".join(path)} M{x - 4.5:g},{y - 3:.1f} L{x},{y:.1f} L{x - 4.5:g},{y + 3:.1f}"/>'


def _box(node: Node, status: Status, place: tuple[int, float], width: int) -> str:
    paint = PAINT.get(status.state, PAINT["waiting"])
    x, y = _x(place[0], width), place[1] + MARGIN - HEIGHT / 2
    dashes = ' stroke-dasharray="4 3"' if status.state in ("waiting", "skipped", "left") else ""
    took = format_duration(status.seconds) if status.seconds is not None and status.state in ("done", "failed") else ""
    state = LABELS.get(status.state, status.state)
    note = took or state
    faint = ' opacity="0.65"' if status.state == "left" else ""
    second = f"{shorten(node.method, int((width - 31) / 5.7) - len(note) - 3)} · {note}" if node.method else note
    title = _text(f"{node.name}: {node.method}, {state}")
    return "\n".join(
        [
            f'<g transform="translate({x},{y:.1f})"{faint}><title>{title}</title>',
            f'<rect width="{width}" height="{HEIGHT}" rx="7" fill="{paint.ground}" stroke="{paint.stroke}" '
            f'stroke-width="1.3"{dashes}/>',
            _mark(paint),
            f'<text x="27" y="15.5" font-size="12.5" font-weight="600" fill="#1f2328">'
            f"{_text(shorten(label(node.name), int((width - 31) / 6.9)))}</text>",
            f'<text x="27" y="29" font-size="10.5" fill="#57606a">{_text(second)}</text>',
            "</g>",
        ]
    )


def _mark(paint: Paint) -> str:
    if not paint.mark:
        return f'<circle cx="14" cy="18" r="6.4" fill="none" stroke="{paint.stroke}" stroke-width="1.2"/>'
    return (
        f'<circle cx="14" cy="18" r="7" fill="{paint.stroke}"/><path transform="translate(14,18)" d="{paint.mark}" '
        'fill="none" stroke="#ffffff" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def _caption(nodes: Sequence[Node], states: Mapping[str, Status]) -> str:
    counts: dict[str, int] = {}
    for node in nodes:
        state = states.get(node.name, Status()).state
        state = LABELS.get(state, state)
        counts[state] = counts.get(state, 0) + 1
    return _text(", ".join(f"{number} {state}" for state, number in counts.items()) or "no stages")


def _text(text: str) -> str:
    """Escaped, and without the control characters that XML cannot carry."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))
