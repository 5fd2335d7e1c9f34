"""Accepted drift: an artifact whose *code* has changed since, and of which a person says that it is still right.

The record `accepted/<method>/<key>.json` links the key that the stage has now to the artifact it had before, with who
said so, when, why, and which definitions had changed. It is written once, and shown wherever the artifact is a hit.
"""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from pipelines.housekeeping.files import StoreFiles
from pipelines.planning.reasons import DRIFT, Reason
from pipelines.store import Manifest, Store
from stages.errors import UserError

if TYPE_CHECKING:
    from pipelines.planning.plan import Step

VERSION: Final = 1


@dataclass(frozen=True)
class Acceptance:
    """That the artifact with the key `of` stands for `key`."""

    method: str
    key: str
    of: str
    stage: str
    made_by: str
    """The run that made the artifact."""
    who: str
    when: float
    """Seconds since the epoch."""
    reason: str
    code_before: str
    code_after: str
    definitions: tuple[str, ...]
    """The definitions that had changed, as people read them."""

    @property
    def text(self) -> str:
        """The record in one line."""
        day = time.strftime("%Y-%m-%d", time.localtime(self.when))
        return f"changed code accepted by {self.who} on {day}: {self.reason}"


def accepted(store: Store, method: str, key: str) -> tuple[Manifest, tuple[Reason, ...]] | None:
    """The artifact that was accepted for `key`, and the reason that tells so; None when there is none."""
    data = StoreFiles(store).read(_name(method, key))
    if data is None:
        return None
    try:
        content = json.loads(data)
        if content.pop("version") != VERSION:
            return None
        record = Acceptance(**{**content, "definitions": tuple(content["definitions"])})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # a record that cannot be read accepts nothing: the stage runs
    manifest = store.find(record.method, record.of)
    if record.key != key or manifest is None:
        return None
    return manifest, (Reason("accepted", record.text, record.stage, record.code_before, record.code_after),)


def accept(store: Store, step: Step, last: Manifest | None, reason: str) -> Acceptance:
    """Record that `last` stands for what `step` would make. Raises UserError unless only the code has changed."""
    where = f"stage {step.spec.name!r}"
    if step.state == "cached":
        raise UserError("there is nothing to accept: it is cached", where=where, fix="regraft plan tells what runs")
    if last is None:
        raise UserError("it has no earlier result that could be kept", where=where, fix="run it")
    if step.identity is None or step.key is None:
        fix = "run or accept the stages above it first, so that its inputs are known"
        raise UserError(step.reasons[0], where=where, fix=fix)
    other = [change.text for change in step.why if change.kind not in DRIFT]
    if other:
        fix = "only a change of code can be accepted: run the stage, or take the other changes back"
        raise UserError(f"more than its code has changed: {'; '.join(other)}", where=where, fix=fix)
    if problem := store.damage(last):
        raise UserError(f"its earlier result is damaged: {problem}", where=where, fix="run it")
    record = Acceptance(
        method=last.method,
        key=step.key,
        of=last.key,
        stage=step.spec.name,
        made_by=last.run,
        who=who(),
        when=round(time.time(), 3),
        reason=reason,
        code_before=last.identity["code"],
        code_after=step.identity["code"],
        definitions=tuple(change.text.removeprefix("code: ") for change in step.why),
    )
    content = json.dumps({"version": VERSION, **asdict(record)}, indent=1, sort_keys=True)
    StoreFiles(store).write(_name(last.method, step.key), content.encode() + b"\n")
    return record


def who() -> str:
    """The person at work: as git knows them, else the account on this machine."""
    try:
        asked = ["git", "config", "--get-regexp", r"^user\.(name|email)$"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        told = ""
    known = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    if "user.name" in known:
        email = f" <{known['user.email']}>" if "user.email" in known else ""
        return known["user.name"] + email
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # an account without a name, as in some containers
        return f"somebody@{socket.gethostname()}"


def _name(method: str, key: str) -> str:
    return f"accepted/{method.replace(':', '-')}/{key}.json"
