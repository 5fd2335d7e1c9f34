"""`regraft verify`: reads every byte of every artifact again, shows what is damaged; `--repair` moves it aside."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipelines.cli.console import new_console
from pipelines.cli.tables import grid
from pipelines.spec.quantities import format_bytes
from pipelines.store import Manifest, Store

SHORT: Final = 8


@dataclass(frozen=True)
class Damaged:
    """An artifact that is not what was published."""

    where: str
    manifest: Manifest | None
    """None when the manifest itself cannot be read."""
    problem: str


def verify(store: Store, *, repair: bool) -> bool:
    """Read everything, print what is damaged; whether all is whole, or has been put aside."""
    console = new_console()
    artifacts = list(store.manifests())
    size = sum(_size(manifest) for _, manifest in artifacts)
    damaged = list(_find_damage(store, artifacts, size, console))
    print(f"{len(artifacts)} artifacts, {format_bytes(size)} read: {len(damaged)} damaged")
    if not damaged:
        return True
    table = grid("stage", "artifact", "what is wrong")
    for found in damaged:
        stage = found.manifest.stage if found.manifest else "?"
        method, key = found.where.split("/")[-2:]
        table.add_row(Text(stage), Text(f"{method}/{key[:SHORT]}…"), Text(found.problem, "red"))
    console.print(table)
    if not repair:
        print(f"\nput them aside, so that they are made anew when needed: {store.command('verify --repair')}")
        return False
    for found in damaged:
        print(f"put aside: {store.set_aside_artifact(found.where)}")
    print("\nmake them anew with:")
    for command in remakes(store, [found.manifest for found in damaged]):
        print(f"  {command}")
    return True


def remakes(store: Store, made: Iterable[Manifest | None]) -> list[str]:
    """Commands that make these artifacts again, in the order in which they were made."""
    known = sorted((manifest for manifest in made if manifest), key=lambda one: one.evidence.get("started", 0.0))
    commands: dict[str, list[str]] = {}
    for manifest in known:
        stages = commands.setdefault(manifest.run, [])
        stages += ["--only", manifest.stage] if manifest.stage not in stages else []
    lines = []
    for run, stages in commands.items():
        if run and (store.run_directory(run) / "request.json").exists():
            lines.append(store.command(shlex.join(["rerun", run, *stages])))
        else:
            names = ", ".join(stages[1::2])
            lines.append(f"{store.command('run PIPELINE')}   # whose stages include {names}")
    return lines or [f"{store.command('run PIPELINE')}: whatever needs them makes them"]


def _find_damage(
    store: Store, artifacts: list[tuple[str, Manifest | None]], size: int, console: Console
) -> Iterator[Damaged]:
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=size or None)
        for where, manifest in artifacts:
            if manifest is None:
                yield Damaged(where, None, "its manifest cannot be read")
                continue
            if problem := store.damage(manifest, read=True):
                yield Damaged(where, manifest, problem)
            progress.advance(task, _size(manifest))


def _size(manifest: Manifest | None) -> int:
    return sum(output.size for output in manifest.outputs.values()) if manifest else 0
