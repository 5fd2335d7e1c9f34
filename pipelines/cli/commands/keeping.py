"""Commands that keep the store and its mirror in MLflow."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.options import StoreAt


def verify(store: StoreAt = ".regraft") -> None:
    """Read every byte of every artifact again and compare it with what was published."""
    from pipelines.cli import history
    from pipelines.store import open_store

    if not history.verify(open_store(store)):
        raise typer.Exit(1)


def ui(
    store: StoreAt = ".regraft",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless asked otherwise.")] = "127.0.0.1",
) -> None:
    """Open the runs in MLflow, on this machine only."""
    from pipelines.lineage.server import serve
    from pipelines.store import open_store

    serve(open_store(store).root, port, host)


def resync(store: StoreAt = ".regraft") -> None:
    """Bring MLflow up to date with the store."""
    from pipelines.lineage.server import resync as bring
    from pipelines.store import open_store

    for outcome in bring(open_store(store).root):
        print(f"{outcome.run}: {outcome.problem or f'{outcome.events} events brought'}")
