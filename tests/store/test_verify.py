"""`regraft verify`: finds what is damaged, on a disk and on a bucket, puts it aside, and tells what makes it again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.cli.session import RunOptions
from pipelines.store import open_store
from tests.engine.conftest import Bench
from tests.engine.conftest import bench as bench
from tests.store.s3 import bucket as bucket
from tests.store.s3 import s3_server as s3_server

TEXT = """\
name: x
stages:
  a: {uses: "tests.toy:Write"}
  b: {uses: "tests.toy:Copy", inputs: {text: a}, with: {mark: b}}
  c: {uses: "tests.toy:Copy", inputs: {text: b}, with: {mark: c}}
"""


def regraft(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split()) if code else done.output


def damage(bench: Bench, result, stage: str) -> None:
    """Change bytes, and not the size, of what a stage made."""
    manifest = result.manifests[stage]
    if hasattr(bench.store, "remote"):
        address = bench.store.uri(manifest, "text") + "/report.json"
        bench.store.remote.pipe_file(address, bench.store.remote.cat_file(address).replace(b"hello", b"hullo"))
    else:
        file = bench.output(result, stage) / "report.json"
        file.write_text(file.read_text().replace("hello", "hullo"))


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_damage_is_found_put_aside_and_made_again(bench, request, monkeypatch, tmp_path, place):
    if place == "s3":
        monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
        bench.store = open_store(f"s3://{request.getfixturevalue('bucket')}/store")
    where = ("--store", bench.store.location)
    result = bench.run(TEXT)
    assert "3 artifacts, " in regraft("verify", *where)
    before = {stage: manifest.outputs for stage, manifest in result.manifests.items()}
    damage(bench, result, "b")
    damage(bench, result, "c")
    told = regraft("verify", *where, code=1)
    assert "2 damaged" in told
    assert "text/report.json changed" in told
    assert "regraft verify --repair" in told
    told = regraft("verify", "--repair", *where)
    command = shlex.split(next(line for line in told.splitlines() if "regraft rerun" in line))
    assert command[:7] == ["regraft", "rerun", result.run, "--only", "b", "--only", "c"]
    assert "1 artifacts, " in regraft("verify", *where)
    regraft(*command[1:], "--inline", "--view", "quiet")
    assert "3 artifacts, " in regraft("verify", *where)
    bench.options = RunOptions(executor="inline", track=False, view="quiet")
    again = bench.run(TEXT)
    assert set(again.states.values()) == {"cached"}
    assert {stage: manifest.outputs for stage, manifest in again.manifests.items()} == before


def test_an_unreadable_manifest_is_damage(bench):
    result = bench.run(TEXT)
    (bench.output(result, "b").parent / "manifest.json").write_text("{")
    assert "its manifest cannot be read" in regraft("verify", "--store", str(bench.store.root), code=1)
    assert "damaged" in regraft("verify", "--repair", "--store", str(bench.store.root))
    assert bench.ran(TEXT) == ["b"]


def test_a_damaged_input_is_detected_before_a_stage_reads_it(bench, monkeypatch):
    """It rots between the plan and the stage that reads it."""
    from tests import toy

    def spoil(self, context) -> None:
        self.write(context, "x")
        for file in Path(bench.store.root).glob("artifacts/tests.toy-Write/*/text/report.json"):
            file.write_text(file.read_text().replace("hello", "hullo"))

    monkeypatch.setattr(toy.Copy, "run", spoil)
    text = TEXT + '  d: {uses: "tests.toy:Join", inputs: {texts: [a, c]}}\n'
    failure = bench.run(text).failures["d"]
    assert "is damaged: text/report.json changed on disk" in failure.message
    assert failure.users_fault
