"""One trial of each kind with a pipeline of quick stages; `python -m tests.chaos` does many, with a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli.session import RunOptions
from pipelines.store import Store
from tests.chaos.disturb import can_mount, own_mounts
from tests.chaos.pipelines import QUICK
from tests.chaos.trial import Place, Undisturbed, problems, trial, undisturbed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Undisturbed:
    return undisturbed(Place(QUICK, tmp_path_factory.mktemp("chaos") / "undisturbed"))


@pytest.mark.parametrize(("kind", "seed", "retries"), [("driver", 0, 0), ("worker", 0, 1), ("head", 0, 0)])
def test_a_run_that_is_disturbed_gives_what_an_undisturbed_one_gives(kind, seed, retries, expected, tmp_path):
    early = expected.training[2]  # so that there is something left to disturb, however late the news of it comes
    report = trial(Place(QUICK, tmp_path / kind, retries), kind, seed, expected, early)
    assert not report.problems, f"{report.done}\n{report.problems}\n{report.told}"
    assert "nothing" not in report.done
    assert report.resumes == (0 if kind == "worker" else 1), report.told


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces to mount a small disk")
def test_a_run_whose_disk_is_full_goes_on_when_there_is_room_again():
    command = own_mounts(
        [sys.executable, "-m", "tests.chaos", "--seeds", "1", "--kinds", "disk", "--pipeline", "quick"]
    )
    environment = {**os.environ, "REGRAFT_CHAOS_MAY_MOUNT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    assert "bytes of ballast" in done.stdout
    assert "resumed 1×" in done.stdout


def test_ray_that_does_not_start_is_told_and_the_run_can_be_resumed(bench, monkeypatch):
    import ray

    def fail(**_options):
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    bench.options = RunOptions("ray", track=False, view="quiet")
    with monkeypatch.context() as patch:
        patch.setattr(ray, "init", fail)
        result = bench.run(
            "name: x\nstages:\n  a: {uses: 'tests.toy:Write'}\n  b: {uses: 'tests.toy:Write', needs: a}\n"
        )
    assert result.states == {"a": "failed", "b": "skipped"}
    assert "Ray could not be started on this machine: The current node timed out" in result.failures["a"].message
    assert result.run in result.failures["a"].fix


def test_what_is_wrong_is_noticed(tmp_path, bench):
    """The checks themselves, on a run without Ray."""
    place = Place(QUICK, tmp_path / "place")
    bench.store = Store(place.disk / "store")
    text = (place.directory / "p.yaml").read_text()
    first = bench.run(text, "left.count=2", "train.seconds=0", "left.seconds=0")
    expected = Undisturbed(place.digests(), 1, range(1))
    assert problems(place, expected) == []
    assert "other artifacts: last" in problems(place, Undisturbed({**place.digests(), "last": {}}, 1, range(1)))
    journal = bench.store.run_directory(first.run) / "journal.jsonl"
    again = bench.store.run_directory("29990101-000000-quick-0000")
    again.mkdir()
    (again / "journal.jsonl").write_bytes(journal.read_bytes().replace(b'"time": 1', b'"time": 2'))
    found = problems(place, expected)
    assert any("done again: train" in problem for problem in found)
    assert any("done 2 times: train" in problem for problem in found)
    assert any("15 steps of train were done again" in problem for problem in found)
    (bench.store.root / "work").mkdir(exist_ok=True)
    (bench.store.root / "work/half").touch()
    weights = next(bench.store.root.glob("artifacts/*/*/text/weights.bin"))
    weights.chmod(0o644)
    weights.write_bytes(b"rot")
    found = problems(place, expected)
    assert any("left in the store: work/half" in problem for problem in found)
    assert any("damaged: " in problem for problem in found)
