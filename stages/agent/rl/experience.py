"""Experience: rollouts with all that an update needs to know of them, and how it is kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.agent.conversation.messages import Message, Trajectory
from stages.agent.rollout.rollouts import Rollout


@dataclass(frozen=True)
class Experience:
    """A rollout and what was measured with the policy that made it, before any update."""

    rollout: Rollout
    group: int
    """Which of the step's questions it answers, from 0."""
    success: bool
    scores: list[float]
    """Mean log-probability of the true answer before each turn; empty where no gains are asked for."""
    reference: list[float]
    """Log-probability of each token under the reference, 0 where the policy did not sample it; empty without one."""


class Diary:
    """The experience of every step of a run, in a directory: a file each, there when it is whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self, number: int) -> list[Experience] | None:
        """What was collected for the set `number`, None where nothing was."""
        file = self._file(number)
        return [_experience(row) for row in json.loads(file.read_bytes())] if file.exists() else None

    def holds(self, number: int) -> bool:
        """Whether the set `number` was collected."""
        return self._file(number).exists()

    def write(self, number: int, experiences: Sequence[Experience]) -> None:
        """Keep a set."""
        self.directory.mkdir(parents=True, exist_ok=True)
        part = self._file(number).with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps([asdict(found) for found in experiences], ensure_ascii=False))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._file(number))

    def all(self, num: int) -> Iterator[list[Experience]]:
        """The first `num` sets, in order."""
        for number in range(num):
            found = self.read(number)
            assert found is not None, f"{self._file(number)} is missing"
            yield found

    def _file(self, number: int) -> Path:
        return self.directory / f"{number:06d}.json"


def _experience(row: dict[str, Any]) -> Experience:
    rollout = row["rollout"]
    told = {"trajectory": _trajectory(rollout["trajectory"]), "rows": [_trajectory(each) for each in rollout["rows"]]}
    return Experience(**{**row, "rollout": Rollout(**{**rollout, **told})})


def _trajectory(told: dict[str, Any]) -> Trajectory:
    messages = tuple(Message(m["role"], m["content"], tuple(m["token_ids"])) for m in told["messages"])
    return Trajectory(**{**told, "messages": messages, "answers": tuple(told["answers"])})
