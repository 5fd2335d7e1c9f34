"""A training that is killed, with its driver, goes on from its last checkpoint and gives the same artifacts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipelines.running.journal import Journal, list_runs
from pipelines.store import Store

NUM_STEPS = 8
TOKENS = NUM_STEPS * 8 * 32
TEXT = f"""\
name: trained
stages:
  model: {{uses: "tests.engine.gated:TinyModel"}}
  data: {{uses: "tests.engine.gated:TinyTokens", inputs: {{model: model}}}}
  student:
    uses: distill.logits
    inputs: {{teacher: model, data: data.train, heldout: data.heldout}}
    with: {{tokens: {TOKENS}, batch_sequences: 8, precision: fp32, learning_rate: 1e-2, checkpoint_minutes: 0}}
"""


def start(directory: Path, store: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines", "run", "p.yaml", "--inline", "--no-track", "--store", store]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=directory, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def digests(store: Store) -> dict[str, dict[str, str]]:
    made = [manifest for _, manifest in store.manifests() if manifest]
    return {one.stage: {name: output.digest for name, output in one.outputs.items()} for one in made}


def steps(store: Store, run: str) -> list[int]:
    events = Journal(store.run_directory(run) / "journal.jsonl").read()
    return [event["step"] for event in events if event["event"] == "curve" and "loss" in event["values"]]


def seen(directory: Path, pattern: str) -> bool:
    """Whether there is such a file; directories may go while they are looked through."""
    try:
        return any(directory.glob(pattern))
    except FileNotFoundError:
        return False


def test_killed_and_resumed_gives_the_digests_of_an_undisturbed_run(tmp_path):
    (tmp_path / "p.yaml").write_text(TEXT)
    whole, killed = start(tmp_path, "whole"), start(tmp_path, "store")
    while not seen(tmp_path / "store/scratch", "*/*/checkpoints/step-*3/complete.json"):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    told = whole.communicate()[0]
    assert whole.returncode == 0, told
    store = Store(tmp_path / "store")
    assert "student" not in digests(store)
    resumed = start(tmp_path, "store")
    told = resumed.communicate()[0]
    assert resumed.returncode == 0, told
    assert digests(store) == digests(Store(tmp_path / "whole"))
    first, second = list_runs(store.root)
    assert steps(store, first)[:3] == [1, 2, 3]
    assert steps(store, second)[0] > 3, "what was trained is not trained again"
    assert steps(store, second)[-1] == NUM_STEPS
    assert "its process is gone" in told, "whose lease was taken over"
    assert list((store.root / "scratch").iterdir()) == []


def test_scratch_survives_the_driver_and_belongs_to_one_recipe(bench):
    text = "name: x\nstages:\n  a: {uses: 'tests.toy:Fail', with: {how: fault, until_attempt: 2}}\n"
    assert bench.run(text).states == {"a": "failed"}
    assert bench.run(text, "a.how=user").states == {"a": "failed"}, "another recipe begins anew"
    assert bench.run(text).ok, "the same one goes on"
