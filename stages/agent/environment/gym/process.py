"""A `reasoning-gym` to ask: it lives in a process that is killed when it takes too long, and started again."""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any, Final

from stages.agent.environment.gym import server
from stages.errors import StageError

START_SECONDS: Final = 120
"""For starting: the library imports much."""


@dataclass
class Gym:
    """Makes tasks and scores answers. Picklable: a copy starts a process of its own, when it is asked something.

    Hashes are not random in that process, so what is made depends on the seed alone.
    """

    seconds: float = 20.0
    """For each reply."""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False, compare=False)
    _said: IO[bytes] | None = field(default=None, repr=False, compare=False)
    """What the process says on standard error."""

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
        if self._said is not None:
            self._said.close()
            self._said = None

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "_process": None, "_said": None}

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._said = TemporaryFile()  # noqa: SIM115, closed with the process
            self._process = _start(self._said, self.seconds)
            if "problem" in (found := self._read(self._process, START_SECONDS)):
                return found
        process = self._process
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # a process that is gone is found out by its silence
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        return self._read(process, self.seconds)

    def _read(self, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        """The next line of `process`; without one in time it is ended, and the problem told."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            late = not waiting.select(seconds)
        line = "" if late else process.stdout.readline()
        if line:
            return json.loads(line)
        ended = f"no reply within {seconds:g} s" if late else f"the process ended with {process.wait()}{self._words()}"
        self.close()
        return {"problem": ended}

    def _words(self) -> str:
        """The last line on standard error, after a colon; nothing where there is none."""
        assert self._said is not None
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def _start(said: IO[bytes], seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", server.__file__, str(math.ceil(seconds) + 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
    )
