"""A disk that is full, at any point, ends a run with a clear message; what is there stays readable and goes on later.

The disk is a small tmpfs in a mount namespace of its own, so that nothing else notices.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines.running.journal import Journal, JournalWriter
from pipelines.store import Store
from stages.errors import UserError

SIZE_KIB = 512
TEXT = """\
name: full
stages:
  a: {uses: "tests.toy:Write", with: {text: small}}
  b: {uses: "tests.engine.gated:Fill", with: {kib: KIB, place: PLACE}, inputs: {text: a}}
  c: {uses: "tests.toy:Copy", inputs: {text: b}}
"""
SCRIPT = """
set -e
mount -t tmpfs -o size={size}k none "$PWD/disk"
set +e
{python} -m tests.engine.unchecked run p.yaml --inline --no-track --store disk/store > told 2>&1
echo $? > code
set -e
rm -f disk/store/ballast disk/store/scratch/*/*/ballast
cp -r disk/store kept
"""


def can_mount() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces to mount a small disk")
@pytest.mark.parametrize(
    ("place", "kib"), [("output", 600), ("scratch", 600), ("log", 600), ("store", 600), ("store", 497), ("store", 480)]
)
def test_a_full_disk(bench, tmp_path, place, kib):
    (tmp_path / "disk").mkdir()
    (tmp_path / "p.yaml").write_text(TEXT.replace("KIB", str(kib)).replace("PLACE", place))
    script = SCRIPT.format(size=SIZE_KIB, python=sys.executable)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text()
    assert "the disk is full" in told
    assert "Traceback" not in told
    assert "mistake in regraft" not in told
    assert (tmp_path / "code").read_text().strip() == "2"
    store = Store(tmp_path / "kept")
    for path in (store.root / "runs").iterdir():
        assert Journal(path / "journal.jsonl").read()[0]["event"] == "run-started"
    bench.store = store
    assert all(manifest and store.damage(manifest, read=True) is None for _, manifest in store.manifests())
    result = bench.run(TEXT.replace("KIB", "1").replace("PLACE", place))
    assert result.ok, result.failures
    assert bench.executions().count("Write:small") == 1, "what was finished is not done again"


def test_a_journal_that_cannot_be_written_is_still_whole(tmp_path, monkeypatch):
    writer = JournalWriter(tmp_path / "r")
    writer.write({"event": "run-started"})
    real = os.write
    written = []

    def full(descriptor: int, data: bytes) -> int:
        written.append(real(descriptor, data[:5]))
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        return 5

    monkeypatch.setattr("os.write", full)
    with pytest.raises(UserError, match=r"the disk is full.*journal"):
        writer.write({"event": "stage-started", "stage": "a"})
    monkeypatch.undo()
    writer.close()
    assert (tmp_path / "r/open").exists(), "the next run writes its end"
    assert [event["event"] for event in Journal(tmp_path / "r/journal.jsonl").read()] == ["run-started"]


def test_a_line_torn_by_a_crash_is_cut_before_the_next(tmp_path):
    writer = JournalWriter(tmp_path / "r")
    writer.write({"event": "run-started"})
    with writer.path.open("ab") as file:
        file.write(b'{"event": "stage-sta')
    JournalWriter(tmp_path / "r").write({"event": "run-finished", "state": "cancelled"})
    assert [event["event"] for event in Journal(writer.path).read()] == ["run-started", "run-finished"]
