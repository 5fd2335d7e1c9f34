"""That a person accepted an artifact although its code has changed since: the store's record of it, for a stage's run.

Behind a URL the records are not on this machine; the stage's reason, which its run shows as well, tells the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.lineage.view import REUSED
from pipelines.running.journal import Event


def accepted_for(store: Path, event: Event) -> dict[str, Any]:
    """The newest acceptance of the artifact that a stage took over, given before it did; empty without one."""
    if event["state"] not in REUSED:
        return {}
    directory = store / "accepted" / str(event.get("method") or "").replace(":", "-")
    found = [record for record in _records(directory) if record.get("of") == event.get("key")]
    before = [record for record in found if float(record.get("when") or 0.0) <= event["time"]]
    return max(before, key=lambda record: float(record.get("when") or 0.0), default={})


def _records(directory: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(directory.glob("*.json")):
        try:
            content = json.loads(file.read_bytes())
        except ValueError:
            continue  # a record that cannot be read accepts nothing
        if isinstance(content, dict):
            yield content
