"""`regraft gc`, `tag` and `export`, as people see them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipelines.cli.console import new_console
from pipelines.cli.options import print_json
from pipelines.cli.tables import grid
from pipelines.housekeeping.alive import find_alive
from pipelines.housekeeping.catalogue import Catalogue
from pipelines.housekeeping.export import Exported
from pipelines.housekeeping.gc import Policy, format_age, survey
from pipelines.housekeeping.leftovers import Item
from pipelines.housekeeping.reference import find_artifact, find_runs
from pipelines.housekeeping.sweep import Swept, collect
from pipelines.housekeeping.tags import Tag, read_tags, remove_tag, write_tag
from pipelines.spec.quantities import format_bytes
from pipelines.store import Store
from stages.errors import UserError


def show_gc(store: Store, policy: Policy, *, remove: bool, as_json: bool, again: str) -> None:
    """Print what would go and what stays; with `remove`, remove it. `again` is the command that removes."""
    swept: Swept | None = None
    if remove:
        items, swept = collect(store, policy)
    else:
        items = survey(Catalogue.read(store), policy, find_alive(store))
    if as_json:
        print_json({"removed": swept is not None, "items": [_plain(item) for item in items]})
        return
    console = new_console()
    console.print(*_groups(items), sep="\n")
    print(f"\n{_summary(items, swept, again)}")


def _plain(item: Item) -> dict[str, object]:
    return {name: value for name, value in vars(item).items() if name != "manifest"}


def _groups(items: Sequence[Item]) -> Iterator[RenderableType]:
    """What goes and what stays, each under its reason."""
    now = time.time()
    for goes, why in dict.fromkeys((item.goes, item.why) for item in items):
        group = [item for item in items if (item.goes, item.why) == (goes, why)]
        word = Text("goes", "red") if goes else Text("stays", "green")
        size = format_bytes(sum(item.bytes for item in group))
        yield Text.assemble("\n", word, f", {size}: ", (why, "default"))
        table = Table(box=None, padding=(0, 2, 0, 2), pad_edge=False, show_header=False)
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("what", overflow="fold")
        table.add_column("last used by", overflow="fold")
        for item in group:
            table.add_row(*_cells(item, now))
        yield Padding(table, (0, 0, 0, 2))


def _cells(item: Item, now: float) -> tuple[Text, ...]:
    """Size, name, and the run that used it last, whose name tells when; without one, how long ago that was."""
    name = item.name if item.kind == "artifact" else f"{item.kind} {item.name}"
    age = f"{format_age(now - item.last_used)} ago" if item.last_used else ""
    return Text(format_bytes(item.bytes)), Text(name), Text(item.last_run or age, "dim")


def _summary(items: Sequence[Item], swept: Swept | None, again: str) -> str:
    total, going = sum(item.bytes for item in items), [item for item in items if item.goes]
    if swept is None:
        if not going:
            return f"nothing to remove: all of {format_bytes(total)} stays"
        freed = sum(item.bytes for item in going)
        return (
            f"would remove {_counted(going)}: {format_bytes(freed)} of {format_bytes(total)}\n"
            f"nothing has been removed; do it with: {again}"
        )
    text = f"removed {_counted(swept.removed)}: {format_bytes(swept.freed)} of {format_bytes(total)}"
    if swept.stopped_by:
        text += f"\nrun {swept.stopped_by} started meanwhile, so the rest was left; run the command again"
    return text


def _counted(items: Sequence[Item]) -> str:
    """`3 artifacts (2.0 MiB), 1 scratch (5 KiB)`."""
    parts = []
    for kind in dict.fromkeys(item.kind for item in items):
        found = [item for item in items if item.kind == kind]
        noun = "artifacts" if kind == "artifact" and len(found) > 1 else kind
        parts.append(f"{len(found)} {noun} ({format_bytes(sum(item.bytes for item in found))})")
    return ", ".join(parts) or "nothing"


def give_tag(store: Store, target: str, name: str) -> None:
    """Give `target`, a run or an artifact, the tag `name`."""
    catalogue = Catalogue.read(store)
    tag = _tag_for(catalogue, target, name)
    before = write_tag(catalogue.files, tag)
    moved = f", no longer for {before.target}" if before and before.target != tag.target else ""
    print(f"{name} stands for the {tag.kind} {tag.target}{moved}")


def _tag_for(catalogue: Catalogue, target: str, name: str) -> Tag:
    runs = find_runs(catalogue, target)
    if len(runs) == 1:
        return Tag(name, "run", runs[0].name)
    made = find_artifact(catalogue, target)
    if catalogue.gone(made.manifest):
        raise UserError(f"{made.name} was removed from the store", fix="run its pipeline again, then tag it")
    manifest = made.manifest
    return Tag(name, "artifact", manifest.run, manifest.stage, manifest.method, manifest.key, made.output)


def take_tag(store: Store, name: str) -> None:
    """Take the tag `name` away."""
    tag = remove_tag(Catalogue.read(store).files, name)
    print(f"{name} no longer stands for {tag.target}; gc may remove it now")


def show_tags(store: Store, *, as_json: bool) -> None:
    """List the tags."""
    tags = read_tags(Catalogue.read(store).files)
    if as_json:
        print_json([asdict(tag) for tag in tags.values()])
        return
    if not tags:
        print(f"no tags in {store.location}; give one with: {store.command('tag RUN|ARTIFACT NAME')}")
        return
    table = grid("tag", "", "stands for", "since")
    for tag in tags.values():
        table.add_row(tag.name, tag.kind, tag.target, time.strftime("%Y-%m-%d %H:%M", time.localtime(tag.time)))
    new_console().print(table)


def print_export(exported: Exported) -> None:
    """Tell what was written, and from which run."""
    made = exported.made
    size = sum((exported.directory / name).stat().st_size for name in exported.files)
    print(f"{made.name} of run {made.manifest.run or 'unknown'} → {exported.directory}")
    print(f"{len(exported.files)} files, {format_bytes(size)}: {', '.join(exported.files)}")
    if made.record.kind == "model":
        print(f'load it with AutoModelForCausalLM.from_pretrained("{exported.directory}")')
