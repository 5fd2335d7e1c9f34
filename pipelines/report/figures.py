"""The pictures of a report, each as an address that holds its data: curves drawn here, figures as stages left them.

An SVG shown through `<img>` runs no scripts and loads nothing, whoever wrote it. matplotlib is imported only when there
is a curve to draw.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipelines.report.values import StageReport
from pipelines.spec.quantities import format_bytes
from pipelines.store import Manifest, Store

LARGEST_FIGURE: Final = 2 * 2**20
"""Bytes; a larger figure stays in the store and the page says where."""
MIME: Final = {".svg": "image/svg+xml", ".png": "image/png"}
MOST_PANELS: Final = 6
"""Curves drawn for each stage; a stage that tracks dozens of figures has them in MLflow."""
MOST_CURVED_STAGES: Final = 16
FIRST_CURVES: Final = ("loss", "kl", "ce", "reward", "heldout_kl_to_parent", "learning_rate")
INK: Final = "#010203"
"""Stands for the colour of text while matplotlib draws; the page's own colour takes its place."""
LINE: Final = "#3b82f6"


@dataclass(frozen=True)
class Picture:
    """A figure with its title; without `source` only the note is shown."""

    title: str
    source: str = ""
    """A `data:` address."""
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """The pictures that belong to one stage; `note` says what was left out."""

    stage: str
    pictures: tuple[Picture, ...]
    note: str = ""


def report_galleries(stages: Sequence[StageReport], manifests: dict[str, Manifest], store: Store) -> list[Gallery]:
    """The figures among the Report artifacts of `stages`, as far as they lie on this machine."""
    galleries = [
        Gallery(stage.name, tuple(_report_pictures(manifests[stage.name], store)))
        for stage in stages
        if stage.name in manifests
    ]
    return [gallery for gallery in galleries if gallery.pictures]


def curve_galleries(stages: Sequence[StageReport]) -> list[Gallery]:
    """One small drawing for each curve of the stages that trained."""
    curved = [stage for stage in stages if any(len(points) > 1 for points in stage.curves.values())]
    galleries = [_curve_gallery(stage) for stage in curved[:MOST_CURVED_STAGES]]
    if left := curved[MOST_CURVED_STAGES:]:
        names = ", ".join(stage.name for stage in left)
        galleries.append(Gallery("more", (), f"Not drawn, see MLflow: the curves of {names}."))
    return galleries


def _curve_gallery(stage: StageReport) -> Gallery:
    numbers = {name: sum(math.isfinite(value) for _, value in points) for name, points in stage.curves.items()}
    names = sorted((name for name, count in numbers.items() if count > 1), key=_rank)
    nowhere = [name for name, count in numbers.items() if not count]
    notes = {"Not drawn": names[MOST_PANELS:], "Never a finite number": nowhere}
    note = " ".join(f"{what}: {', '.join(which)}." for what, which in notes.items() if which)
    return Gallery(stage.name, tuple(_draw(name, stage.curves[name]) for name in names[:MOST_PANELS]), note)


def _rank(name: str) -> int:
    """The telling curves first, the rest as they come."""
    return FIRST_CURVES.index(name) if name in FIRST_CURVES else len(FIRST_CURVES)


def _report_pictures(manifest: Manifest, store: Store) -> Iterator[Picture]:
    for output, record in manifest.outputs.items():
        if record.kind != "report":
            continue
        directory = store.directory(manifest.method, manifest.key) / output
        files = {file.path: file.size for file in record.files if Path(file.path).suffix in MIME}
        drawn = {path for path, size in files.items() if path.endswith(".svg") and size <= LARGEST_FIGURE}
        title = _title(directory)
        for path, size in files.items():
            if path.endswith(".png") and path.removesuffix(".png") + ".svg" in drawn:
                continue  # the same figure twice: the drawing is sharper and mostly smaller
            about = _words(path)
            full = title if about.lower() in title.lower() else f"{title}: {about}"
            yield _picture(directory / path, size, full, store.uri(manifest, output))


def _picture(file: Path, size: int, title: str, uri: str) -> Picture:
    if size > LARGEST_FIGURE:
        limit = format_bytes(LARGEST_FIGURE)
        return Picture(title, note=f"{file.name} has {format_bytes(size)}, more than the {limit} shown here: see {uri}")
    if not file.exists():
        return Picture(title, note=f"{file.name} is not on this machine: see {uri}")
    return Picture(title, _address(file.read_bytes(), MIME[file.suffix]))


def _title(directory: Path) -> str:
    try:
        title = json.loads((directory / "report.json").read_bytes())["title"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        title = directory.name  # a report without a title is named as the output
    return str(title)


def _words(path: str) -> str:
    return path.rpartition(".")[0].replace("_", " ").replace("-", " ")


def _draw(name: str, points: Sequence[tuple[int, float]]) -> Picture:
    """A curve over steps, as an SVG that takes the page's light or dark."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    finite = [(step, value) for step, value in points if math.isfinite(value)]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "regraft", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(3.6, 1.9), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*finite, strict=True), color=LINE, linewidth=1.5, marker="." if len(finite) < 20 else None)
        _plain(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    bad = len(points) - len(finite)
    note = f"{bad} of {len(points)} points are not finite" if bad else ""
    step, value = points[-1]
    title = f"{name.replace('_', ' ')}: {value:.4g} at step {step:,}"
    return Picture(title, _address(_themed(text.getvalue()).encode(), MIME[".svg"]), note)


def _plain(axes: Any) -> None:
    """No frame, a faint grid, everything else in the colour of text."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelcolor=INK, length=3)
    axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axes.yaxis.get_major_locator().set_params(nbins=5)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    axes.xaxis.get_offset_text().set_color(INK)
    axes.yaxis.get_offset_text().set_color(INK)


def _themed(svg: str) -> str:
    head, tag, rest = svg.partition("<defs>")
    style = (
        "<style>svg{color:#57606a}text{font-family:system-ui,sans-serif}"
        "@media(prefers-color-scheme:dark){svg{color:#9198a1}}</style>"
    )
    return head + style + tag + rest.replace(INK, "currentColor")


def _address(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
