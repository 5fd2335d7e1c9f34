"""Commands that keep the store and its mirror in MLflow."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import Json, StoreAt
from stages.errors import UserError


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Put what is damaged aside; tell what makes it.")] = False,
    store: StoreAt = ".regraft",
) -> None:
    """Read every byte of every artifact again and compare it with what was published."""
    from pipelines.cli import verify as verifying
    from pipelines.store import open_store

    if not verifying.verify(open_store(store), repair=repair):
        raise typer.Exit(1)


def ui(
    store: StoreAt = ".regraft",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless asked otherwise.")] = "127.0.0.1",
) -> None:
    """Open the runs in MLflow, on this machine only."""
    from pipelines.lineage.server import serve
    from pipelines.store import open_store

    opened = open_store(store)
    opened.pull_runs()
    serve(opened.root, port, host)


def resync(store: StoreAt = ".regraft") -> None:
    """Bring MLflow up to date with the store."""
    from pipelines.lineage.server import resync as bring
    from pipelines.store import open_store

    opened = open_store(store)
    opened.pull_runs()
    for outcome in bring(opened.root):
        print(f"{outcome.run}: {outcome.problem or f'{outcome.events} events brought'}")


def gc(
    keep_last: Annotated[
        int, typer.Option(min=0, help="Successful runs to keep of each pipeline, the newest, and what ran since.")
    ] = 5,
    keep_tagged: Annotated[bool, typer.Option(help="Keep tagged runs and artifacts.")] = True,
    keep_newest: Annotated[bool, typer.Option(help="Keep the newest result of every stage.")] = True,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Only what was not used for so long, such as 12h or 30d.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only tell what would go.")] = False,
    store: StoreAt = ".regraft",
    json_: Json = False,
) -> None:
    """Tell what can be removed from the store, and why; remove it with --yes."""
    from pipelines.cli.housekeeping import show_gc
    from pipelines.housekeeping.gc import Policy
    from pipelines.spec.quantities import parse_duration
    from pipelines.store import open_store

    try:
        seconds = parse_duration(older_than) if older_than else 0.0
    except ValueError as error:
        raise UserError(f"--older-than: {error}", fix="for example --older-than 30d") from None
    policy = Policy(keep_last, keep_tagged, keep_newest, seconds)
    again = shlex.join(["regraft", *sys.argv[1:], "--yes"])
    show_gc(open_store(store), policy, remove=yes, as_json=json_, again=again)


def tag(
    target: Annotated[
        str | None, typer.Argument(metavar="[RUN|ARTIFACT]", help="What gets the tag; the tag itself with --remove.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The tag.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away.")] = False,
    store: StoreAt = ".regraft",
    json_: Json = False,
) -> None:
    """Name a run or an artifact, so that gc keeps it; list the tags without arguments."""
    from pipelines.cli import housekeeping
    from pipelines.store import open_store

    opened = open_store(store)
    if remove:
        if not (name or target):
            raise UserError("which tag?", fix=opened.command("tag NAME --remove"))
        housekeeping.take_tag(opened, name or target or "")
    elif target and name:
        housekeeping.give_tag(opened, target, name)
    elif target:
        raise UserError(f"which tag shall {target!r} get?", fix=opened.command(f"tag {target} NAME"))
    else:
        housekeeping.show_tags(opened, as_json=json_)


def export(
    artifact: Annotated[str, typer.Argument(help="RUN:stage.output, a stage of the newest run, a tag, or a key.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    store: StoreAt = ".regraft",
) -> None:
    """Copy an artifact into a plain Hugging Face directory, with a card that tells its lineage."""
    from pipelines.cli.housekeeping import print_export
    from pipelines.housekeeping.export import export as copy_out
    from pipelines.store import open_store

    print_export(copy_out(open_store(store), artifact, directory))
