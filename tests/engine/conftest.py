"""A small engine in a temporary directory, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cli.session import RunOptions, run_pipeline
from pipelines.planning import identity
from pipelines.planning.fingerprint import forget
from pipelines.planning.plan import Plan, make_plan
from pipelines.running.result import RunResult
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from pipelines.store import Store, open_store

INLINE = RunOptions(executor="inline", track=False, view="quiet")


@dataclass
class Bench:
    """Runs pipelines in one store and tells which stages really ran."""

    directory: Path
    store: Store
    ran_file: Path
    options: RunOptions = INLINE

    def run(self, text: str, *overrides: str) -> RunResult:
        return run_pipeline(parse(Document("f.yaml", text), overrides), self.store, self.options)

    def plan(self, text: str, *overrides: str) -> Plan:
        return make_plan(parse(Document("f.yaml", text), overrides), self.store)

    def ran(self, text: str, *overrides: str) -> list[str]:
        """Stages that a run executes."""
        result = self.run(text, *overrides)
        assert result.ok, result.failures
        return [name for name, state in result.states.items() if state == "done"]

    def reasons(self, text: str, stage: str, *overrides: str) -> str:
        return "; ".join(self.plan(text, *overrides).steps[stage].reasons)

    def output(self, result: RunResult, stage: str) -> Path:
        manifest = result.manifests[stage]
        return self.store.directory(manifest.method, manifest.key) / "text"

    def executions(self) -> list[str]:
        return self.ran_file.read_text().splitlines() if self.ran_file.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("TOY_RAN", str(tmp_path / "ran"))
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, open_store(str(tmp_path / "store")), tmp_path / "ran")


@pytest.fixture
def fresh_code() -> Callable[[], None]:
    """Call it after an edit to a source file, as a new process would see it."""

    def renew() -> None:
        forget()
        identity.code_of.cache_clear()
        identity.code_digest.cache_clear()

    yield renew
    renew()
