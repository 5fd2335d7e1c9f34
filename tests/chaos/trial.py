"""One trial: run, disturb, resume, and compare with the undisturbed run."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from pipelines.running.journal import Journal, list_runs
from pipelines.store import Store
from tests.chaos.disturb import MARK, Kind, Scene, disturb, kill_all, processes, small_disk
from tests.chaos.pipelines import Subject

LONGEST_SECONDS: Final = 1500.0
"""A driver that takes longer hangs; twenty seconds would do on a quiet machine."""
MOST_RESUMES: Final = 3
LEAVE_SECONDS: Final = 30.0
"""For the processes of a dead driver to notice."""
REPEATED_STEPS: Final = 2
"""Steps that may be done again: the one that was running, and one whose end was not told any more."""
Digests = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Undisturbed:
    """What a run gives when it is left alone."""

    digests: Digests
    num_events: int
    training: range
    """Events of the journal between start and end of the stage that trains."""


@dataclass
class Report:
    """What came of a trial; without `problems`, all is as it should be."""

    kind: Kind
    done: str = ""
    """What was disturbed, and when."""
    resumes: int = 0
    problems: list[str] = field(default_factory=list)
    told: str = ""
    """What the drivers printed."""


@dataclass
class Place:
    """A directory in which a subject runs, with all that belongs to it."""

    subject: Subject
    directory: Path
    retries: int = 0
    workers: int = 1
    store_in: str = "disk"
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        text = self.subject.text.replace("RETRIES", str(self.retries)).replace("WORKERS", str(self.workers))
        (self.directory / "p.yaml").write_text(text)

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def store(self) -> Store:
        return Store(self.disk / "store")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start `regraft COMMAND` here."""
        whole = [sys.executable, "-m", "pipelines", *command, "--store", str(self.disk / "store"), "--view", "lines"]
        path = os.pathsep.join(dict.fromkeys([str(Path(__file__).parents[2]), *filter(None, sys.path)]))
        environment = {**os.environ, MARK: self.mark, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            whole, cwd=self.directory, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT
        )

    def journals(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The events of every run, oldest run first."""
        store = self.store
        return [(run, Journal(store.run_directory(run) / "journal.jsonl").read()) for run in list_runs(store.root)]

    def num_events(self) -> int:
        """Lines in the journals so far; cheap enough to ask often."""
        return sum(file.read_bytes().count(b"\n") for file in (self.disk / "store/runs").glob("*/journal.jsonl"))

    def digests(self) -> Digests:
        """Content digest of every output of every stage."""
        made = [manifest for _, manifest in self.store.manifests() if manifest]
        return {one.stage: {name: output.digest for name, output in one.outputs.items()} for one in made}


def undisturbed(place: Place) -> Undisturbed:
    """Run the subject to its end."""
    place.disk.mkdir()
    driver = place.start("run", "p.yaml", "--no-track")
    told, _ = driver.communicate(timeout=LONGEST_SECONDS)
    assert driver.returncode == 0, told
    [(_, events)] = place.journals()
    ends = [number for number, event in enumerate(events) if event.get("stage") == place.subject.trains]
    return Undisturbed(place.digests(), len(events), range(ends[0], ends[-1]))


def trial(place: Place, kind: Kind, seed: int, expected: Undisturbed, moment: int | None = None) -> Report:
    """Disturb a run after `moment` events (drawn, if not given), resume it, and look at everything."""
    rng = Random(f"{kind}/{seed}")
    if moment is None:  # for workers, while there must be one
        moment = rng.choice(expected.training if kind in ("worker", "rank") else range(1, expected.num_events))
    with small_disk(place.disk) if kind == "disk" else _folder(place.disk):
        report = Report(kind)
        try:
            _run_disturbed(place, kind, moment, rng, expected, report)
            report.problems += problems(place, expected)
        except subprocess.TimeoutExpired:
            report.problems.append(f"the driver hangs: it did not end within {LONGEST_SECONDS:g} s")
        finally:
            kill_all(place.mark)
    return report


def problems(place: Place, expected: Undisturbed) -> list[str]:
    """What is not as in the undisturbed run, or was done twice, or was left behind."""
    found = []
    digests = place.digests()
    if digests != expected.digests:
        stages = [name for name in expected.digests if digests.get(name) != expected.digests[name]]
        found.append(f"other artifacts: {', '.join(stages) or sorted(set(digests) - set(expected.digests))}")
    store = place.store
    for _, manifest in store.manifests():
        if manifest and (damage := store.damage(manifest, read=True)):
            found.append(f"damaged: {manifest.stage}: {damage}")
    found += _redone(place) + _repeated(place)
    left = [path for folder in ("work", "scratch", "leases") for path in (store.root / folder).rglob("*")]
    # The lease of a dead run, for what it had just published, is in nobody's way.
    last = list_runs(store.root)[-1].encode()
    left = [path for path in left if path.is_file() and (path.parts[-3] != "leases" or last in path.read_bytes())]
    found += [f"left in the store: {path.relative_to(store.root)}" for path in left[:3]]
    deadline = time.monotonic() + LEAVE_SECONDS
    while (alive := processes(place.mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    found += [f"left running: {process.pid} {' '.join(process.cmdline()[:3])[:100]}" for process in alive]
    return found


def _run_disturbed(place: Place, kind: Kind, moment: int, rng: Random, expected: Undisturbed, report: Report) -> None:
    driver = place.start("run", "p.yaml", "--no-track")
    while place.num_events() < moment and driver.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.3))
    done = disturb(kind, Scene(place.mark, driver, place.disk), rng)
    report.done = f"at event {moment} of {expected.num_events}: {done or 'nothing: the run had ended'}"
    report.told, _ = driver.communicate(timeout=LONGEST_SECONDS)
    while driver.returncode != 0 and report.resumes < MOST_RESUMES:
        (place.disk / "ballast").unlink(missing_ok=True)
        report.resumes += 1
        # A driver that dies before it has a journal leaves nothing to resume.
        again = ("resume", "latest") if place.num_events() else ("run", "p.yaml", "--no-track")
        driver = place.start(*again)
        told, _ = driver.communicate(timeout=LONGEST_SECONDS)
        report.told += f"\n$ regraft {' '.join(again)}\n{told}"
    if driver.returncode != 0:
        report.problems.append(f"still ends with {driver.returncode} after {report.resumes} times resuming")
    if "Traceback" in report.told or "mistake in regraft" in report.told:
        report.problems.append("a traceback reached the user")


def _redone(place: Place) -> list[str]:
    """Stages that were started although their artifact was there."""
    runs = place.journals()
    order = [run for run, _ in runs]
    makers = {manifest.stage: manifest.run for _, manifest in place.store.manifests() if manifest}
    found = []
    for run, events in runs:
        for event in events:
            if event["event"] == "stage-started" and event["stage"] in makers:
                maker = makers[event["stage"]]
                if order.index(run) > order.index(maker):
                    found.append(f"done again: {event['stage']} in run {run}, made by run {maker}")
    done = Counter(e["stage"] for _, events in runs for e in events if e.get("state") == "done" and "stage" in e)
    return found + [f"done {count} times: {stage}" for stage, count in done.items() if count > 1]


def _repeated(place: Place) -> list[str]:
    """Steps of the stage that trains which were done more than once, beyond what a crash has to cost."""
    steps = Counter(
        event["step"]
        for _, events in place.journals()
        for event in events
        if event["event"] == "curve" and event["stage"] == place.subject.trains and "loss" in event["values"]
    )
    again = sum(count - 1 for count in steps.values())
    return [f"{again} steps of {place.subject.trains} were done again"] if again > REPEATED_STEPS else []


@contextlib.contextmanager
def _folder(place: Path) -> Iterator[Path]:
    place.mkdir(parents=True)
    yield place
