"""One file, tried: read, checked, planned and shown, with a limit on CPU time and on memory."""

from __future__ import annotations

import contextlib
import io
import json
import re
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Final, Literal

from clusters.profile import ProfileError, load_profile
from pipelines.cli.commands.running import plan
from pipelines.spec.load import load
from pipelines.spec.pipeline import Pipeline
from pipelines.spec.problems import printable
from pipelines.store import Store, open_store
from stages.errors import UserError
from tests.fuzz.corpus import Kind, Original
from tests.fuzz.mutate import change

CPU_SECONDS: Final = 2.0
MOST_BYTES: Final = 2 << 30
SAFE: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
ESCAPES: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that would move the cursor, end a line or turn the text round in a terminal."""

Verdict = Literal["plan", "refused", "refused in planning", "BAD"]


class TooSlow(BaseException):
    """Raised in a trial whose time is over; no `except Exception` holds it."""


@dataclass(frozen=True)
class Answer:
    """What became of one file."""

    verdict: Verdict
    text: str = ""
    """The error as a user would see it, or what is wrong with the answer."""


def make(originals: list[Original], seed: int, number: int) -> tuple[Original, bytes]:
    """File `number` of the series `seed`; the same every time."""
    rng = Random(f"{seed}/{number}")
    original = rng.choices(originals, [each.weight for each in originals])[0]
    return original, change(rng, original.text)


def try_file(file: Path, kind: Kind, store: Store, cpu_seconds: float = CPU_SECONDS) -> Answer:
    """Load and plan `file`."""
    try:
        with limits(cpu_seconds):
            return _plan(file, store) if kind == "pipeline" else _profile(file)
    except TooSlow as slow:
        return Answer("BAD", f"took more than {cpu_seconds:g} CPU seconds:\n{_where(slow)}")
    except (Exception, RecursionError) as error:
        return Answer("BAD", _where(error))


def _plan(file: Path, store: Store) -> Answer:
    try:
        pipeline = load(file)
    except UserError as error:
        return _judge("refused", str(error), file)
    problem = _unsafe(pipeline)
    if problem:
        return Answer("BAD", problem)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            plan(str(file), why=True, store=store.location)
    except UserError as error:
        return _judge("refused in planning", str(error), file)
    shown = stream.getvalue()
    escapes = ESCAPES.search(shown)
    return Answer("BAD", f"control characters reach the terminal: {shown!r}") if escapes else Answer("plan")


def _profile(file: Path) -> Answer:
    try:
        load_profile(str(file))
    except (ProfileError, UserError) as error:
        return _judge("refused in planning", str(error), file)
    return Answer("plan")


def _judge(verdict: Verdict, text: str, file: Path) -> Answer:
    """Whether an error is one: it names the file and, where that can be read, a line; it is not endless."""
    if not re.search(rf"{re.escape(str(file))}:(\d+| cannot be read)", text):
        return Answer("BAD", f"an error without file and line:\n{text}")
    if len(text) > 60_000:
        return Answer("BAD", f"an error of {len(text):,} characters:\n{text[:2000]}")
    # The command line does the same to what is not a problem of the file.
    if ESCAPES.search(printable(text) if verdict == "refused in planning" else text):
        return Answer("BAD", f"control characters reach the terminal: {text!r}")
    return Answer(verdict, text)


def _unsafe(pipeline: Pipeline) -> str:
    """What is wrong with a pipeline that passed all checks, or ""."""
    slugs = [spec.slug for spec in pipeline.stages.values()]
    for name in (pipeline.name, *slugs):
        if not SAFE.fullmatch(name):
            return f"{name!r} would be part of a file name"
    if len(set(slugs)) < len(slugs):
        return "two stages share a slug"
    json.dumps(pipeline.resolved(), allow_nan=False).encode("utf-8")
    return ""


@contextlib.contextmanager
def limits(cpu_seconds: float = CPU_SECONDS) -> Iterator[None]:
    """Raise TooSlow after `cpu_seconds`, and MemoryError beyond `MOST_BYTES` more than now."""

    def ring(_signum: int, _frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + MOST_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _where(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-12:])


@dataclass
class Series:
    """Files one after another, in one store."""

    directory: Path
    originals: list[Original]
    seed: int

    def run(self, numbers: range) -> Iterator[tuple[int, Original, bytes, Answer, float]]:
        """Number, origin, content, answer and CPU seconds of each."""
        for number in numbers:
            original, data = make(self.originals, self.seed, number)
            began = time.process_time()
            answer = self._try(original.kind, data)
            yield number, original, data, answer, time.process_time() - began

    def try_text(self, original: Original) -> Answer:
        """The answer to a file that nothing happened to."""
        return self._try(original.kind, original.text.encode())

    def _try(self, kind: Kind, data: bytes) -> Answer:
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "f.yaml"
        file.write_bytes(data)
        return try_file(file, kind, open_store(str(self.directory / "store")))
