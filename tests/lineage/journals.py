"""Writes journals as the engine does, for the mirror to read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

START = 1_760_000_000.0


def digest(text: str) -> str:
    """A content digest, as the store makes them."""
    return hashlib.sha256(text.encode()).hexdigest()


class Writer:
    """Appends events to the journal of one run; `clock` is the time of the next event."""

    def __init__(self, store: Path, run: str, *, at: float = START) -> None:
        self.store, self.run, self.clock, self.began = store, run, at, at
        self.path = store / "runs" / run / "journal.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.made: dict[str, dict[str, Any]] = {}

    def add(self, event: str, *, after: float = 1.0, **fields: Any) -> str:
        """Append one event, `after` seconds later; returns its line."""
        self.clock += after
        line = json.dumps({"event": event, "time": self.clock, **fields})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return line

    def start(self, stages: list[dict[str, Any]], pipeline: str = "demo", **fields: Any) -> str:
        """The event that starts the run."""
        defaults = {
            "description": "Distil a small model and quantise it",
            "file": f"pipelines/{pipeline}.yaml",
            "store": str(self.store),
            "command": f"regraft run {pipeline}",
            "seed": 17,
            "git": {"commit": "c0ffee" * 6 + "abcd", "branch": "main", "dirty": False, "remote": None},
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "machine": {"cpus": 8, "gpu": "H100"},
            "resolved": {"name": pipeline},
        }
        return self.add("run-started", run=self.run, pipeline=pipeline, stages=stages, **{**defaults, **fields})

    def begin(self, stage: str, attempt: int = 1) -> str:
        """A stage starts."""
        return self.add("stage-started", stage=stage, attempt=attempt, key=digest(f"key {stage}"))

    def curve(self, stage: str, step: int, **values: float) -> str:
        """A point of each named curve."""
        return self.add("curve", after=0.01, stage=stage, step=step, values=values)

    def finish(
        self,
        stage: str,
        state: str = "done",
        *,
        reads: dict[str, str] | None = None,
        makes: dict[str, str] | None = None,
        content: str = "",
        **fields: Any,
    ) -> str:
        """A stage ends. `reads`: input name to `stage.output`; `makes`: output name to kind."""
        outputs = [self._output(stage, name, kind, content or stage) for name, kind in (makes or {}).items()]
        inputs = [{**self.made[source], "name": name} for name, source in (reads or {}).items()]
        defaults = {
            "attempt": 1,
            "key": digest(f"key {stage}"),
            "producer": self.run if state == "done" else None,
            "reason": "first run",
            "seconds": 30.0 if state == "done" else 0.0,
            "metrics": {},
            "evidence": {},
            "error": None,
        }
        return self.add(
            "stage-finished",
            after={**defaults, **fields}["seconds"],
            stage=stage,
            state=state,
            inputs=inputs,
            outputs=outputs,
            **{**defaults, **fields},
        )

    def end(self, state: str = "done") -> str:
        """The run ends."""
        return self.add("run-finished", state=state, seconds=self.clock - self.began)

    def knows(self, source: str, item: dict[str, Any]) -> None:
        """Let a stage read what another run made."""
        self.made[source] = item

    def _output(self, stage: str, name: str, kind: str, content: str) -> dict[str, Any]:
        found = {
            "kind": kind,
            "digest": digest(f"{content}.{name}"),
            "uri": str(self.store / "artifacts" / stage / name),
        }
        schema = "trajectories" if name in ("trajectories", "rollouts") else "text"
        found["schema"] = schema if kind == "dataset" else None
        self.made[f"{stage}.{name}"] = {**found, "stage": stage, "output": name}
        return {**found, "name": name, "bytes": 1024}


def stage(name: str, uses: str, *upstream: str, **params: Any) -> dict[str, Any]:
    """A stage as `run-started` lists it."""
    resources = {"workers": 1, "cpus": 1.0, "gpus": 0.0}
    spec = {"name": name, "slug": name, "uses": uses, "upstream": list(upstream), "params": params}
    return {**spec, "execution": {"micro_batch": 4}, "resources": resources}
