"""How a run ended: the state of each stage, what it has, and why it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pipelines.running.record import Failure
from pipelines.store import Manifest

State = Literal["waiting", "running", "done", "cached", "kept", "left", "failed", "skipped", "cancelled"]
"""`kept` is stale and taken as it is; `left` was not chosen."""
MARKS: Final[Mapping[State, str]] = {
    "waiting": "·",
    "running": "▶",
    "done": "✓",
    "cached": "=",
    "kept": "~",
    "left": "·",
    "failed": "✗",
    "skipped": "-",
    "cancelled": "-",
}
"""How each state is marked wherever people see it."""
GOOD: Final = frozenset({"done", "cached", "kept"})


@dataclass
class RunResult:
    """How a run ended, or how it stands."""

    run: str
    states: dict[str, State]
    manifests: dict[str, Manifest] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    """Why the artifact of a stage that was kept is not today's."""
    seconds: float = 0.0
    cancelled: bool = False
    left: list[str] = field(default_factory=list)
    """Of a cancelled run: what is still there although it should not be."""

    @property
    def ok(self) -> bool:
        """Whether every stage that was chosen has its result."""
        return not self.cancelled and all(state in GOOD or state == "left" for state in self.states.values())

    def waiting(self) -> list[str]:
        """Stages that have not been started."""
        return [name for name, state in self.states.items() if state == "waiting"]
