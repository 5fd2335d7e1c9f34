"""A `reasoning-gym` to ask: it lives in a process that is killed when it takes too long, and started again."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from stages.agent.environment.gym import server
from stages.errors import StageError

START_SECONDS: Final = 120
"""For the first reply: the library imports much."""


@dataclass
class Gym:
    """Makes tasks and scores answers. Picklable: a copy starts a process of its own, when it is asked something.

    Hashes are not random in that process, so what is made depends on the seed alone.
    """

    seconds: float = 20.0
    """For each reply."""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False, compare=False)

    def make(self, task: str, settings: dict[str, Any], index: int) -> dict[str, Any]:
        """The entry `index` of a generator: `question`, `answer`, `metadata`. Raises StageError where it makes none."""
        found = self._ask({"task": task, "settings": settings, "index": index})
        if "entry" not in found:
            raise StageError(f"reasoning-gym makes no {task} number {index} with {settings}: {found['problem']}")
        return found["entry"]

    def score(self, task: str, settings: dict[str, Any], entry: dict[str, Any], answer: str) -> float:
        """What an answer is worth in [0, 1]; 0 where the scorer raises or takes too long."""
        found = self._ask({"task": task, "settings": settings, "entry": entry, "answer": answer})
        return min(1.0, max(0.0, found.get("score", 0.0)))

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "_process": None}

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        fresh = self._process is None
        self._process = process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as waiting:
                waiting.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if waiting.select(self._limit(fresh)) else ""
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        ended = process.poll()
        self.close()
        return {"problem": f"the process ended with {ended}" if ended is not None else "no reply in time"}

    def _limit(self, fresh: bool) -> float:
        return max(self.seconds, START_SECONDS) if fresh else self.seconds


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", server.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
    )
