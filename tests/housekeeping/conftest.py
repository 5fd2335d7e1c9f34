"""A store with three runs of a small pipeline, on a disk or behind a URL."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pytest

from pipelines.housekeeping.catalogue import Catalogue
from pipelines.running.result import RunResult
from pipelines.store import Manifest, Store, open_store
from tests.engine.conftest import Bench, bench
from tests.store.s3 import bucket, s3_server

__all__ = ["bench", "bucket", "s3_server"]

PIPELINE = """
name: shop
stages:
  base: {uses: "tests.report.toys:Make", with: {size: 10}}
  child: {uses: "tests.report.toys:Make", inputs: {teacher: base}, with: {size: 20}}
  score: {uses: "tests.report.toys:Measure", inputs: {model: child}}
"""


@dataclass
class Shop:
    """The store, and what each run had."""

    bench: Bench
    results: list[RunResult]

    @property
    def store(self) -> Store:
        return self.bench.store

    def catalogue(self) -> Catalogue:
        return Catalogue.read(self.store)

    def has(self, manifest: Manifest) -> bool:
        return self.store.find(manifest.method, manifest.key) is not None


def make_shop(bench: Bench) -> Shop:
    """Run the pipeline three times, each time with another child."""
    return Shop(bench, [bench.run(PIPELINE, f"child.size={size}") for size in (20, 30, 40)])


EVERYWHERE = pytest.mark.parametrize("any_shop", ["disk", "memory", "s3"], indirect=True)
"""Also on a real S3 server, which takes seconds."""


@pytest.fixture
def shop(bench: Bench) -> Shop:
    return make_shop(bench)


@pytest.fixture(params=["disk", "memory"])
def any_shop(request: pytest.FixtureRequest, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("REGRAFT_CACHE", str(bench.directory / "cache"))
    if request.param == "memory":
        bench.store = open_store(f"memory://{uuid.uuid4().hex}/store")
    if request.param == "s3":
        bench.store = open_store(f"s3://{request.getfixturevalue('bucket')}/team/store")
    return make_shop(bench)
