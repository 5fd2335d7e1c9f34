"""Environments of peers are kept by all that is in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.environments import ensure, ensure_beside


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was installed; nothing is fetched."""
    found: list[list[str]] = []

    def record(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if "install" in command:
            found.append(command)
            target = Path(command[command.index("--target") + 1]) if "--target" in command else Path(command[0]).parent
            target.mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environments.subprocess, "run", record)
    return found


@pytest.mark.parametrize("make", [ensure, ensure_beside])
def test_an_environment_is_kept_until_something_else_is_asked_for(make, installed, tmp_path: Path):
    first = make(tmp_path, "peer", "1.0", ("helper==1",))
    assert make(tmp_path, "peer", "1.0", ("helper==1",)) == first
    assert len(installed) == 1
    asked = (("1.0", ("helper==2",)), ("1.0", ()), ("2", ()))
    others = [make(tmp_path, "peer", version, more) for version, more in asked]
    assert len({first, *others}) == 4
    assert len(installed) == 4
    assert installed[0][-2:] == ["peer==1.0", "helper==1"]
    assert installed[0][0].startswith((sys.executable, str(tmp_path)))
