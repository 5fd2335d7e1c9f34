"""What goes, what stays, and that a store is whole at every moment between."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
import uuid
from pathlib import Path

import pytest

from pipelines.cli.housekeeping import give_tag
from pipelines.housekeeping.alive import Alive, find_alive
from pipelines.housekeeping.ancestry import trace
from pipelines.housekeeping.catalogue import Catalogue
from pipelines.housekeeping.files import StoreFiles
from pipelines.housekeeping.gc import Policy, survey
from pipelines.housekeeping.leftovers import Item
from pipelines.housekeeping.reference import find_artifact
from pipelines.housekeeping.sweep import collect, sweep
from pipelines.store import Store, open_store
from pipelines.store.holder import Holder
from pipelines.store.lease import UnreachableError
from stages.errors import UserError
from tests.holders import dead, far
from tests.housekeeping.conftest import EVERYWHERE, PIPELINE, Shop, make_shop

LAST = Policy(keep_last=1)
NOTHING = Policy(keep_last=0, keep_newest=False)


def going(shop: Shop, policy: Policy) -> set[str]:
    return {item.name.partition(" ")[0] + item.path[-4:] for item in look(shop, policy) if item.goes}


def look(shop: Shop, policy: Policy, alive: Alive | None = None, now: float | None = None) -> list[Item]:
    return survey(shop.catalogue(), policy, alive or find_alive(shop.store), now)


def files(shop: Shop) -> dict[str, bytes]:
    root = shop.store.root / "artifacts"
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "stamps.json"}


@EVERYWHERE
def test_old_runs_go_and_the_last_stays_whole(any_shop: Shop) -> None:
    shop = any_shop
    first, second, third = shop.results
    collect(shop.store, LAST)
    for old in (first, second):
        assert not shop.has(old.manifests["child"])
        assert not shop.has(old.manifests["score"])
    assert all(shop.has(manifest) for manifest in third.manifests.values())
    assert shop.bench.ran(PIPELINE, "child.size=40") == []
    assert shop.bench.ran(PIPELINE, "child.size=20") == ["child", "score"], "its ancestors were kept"


def test_a_dry_run_changes_nothing(shop: Shop) -> None:
    before = files(shop)
    assert sum(item.goes for item in look(shop, LAST)) == 4
    assert files(shop) == before
    assert not (shop.store.root / "lineage").exists()


def test_lineage_outlives_the_bytes(any_shop: Shop) -> None:
    catalogue = any_shop.catalogue()
    made = find_artifact(catalogue, f"{any_shop.results[0].run}:child")
    before = trace(catalogue, made).to_json()
    collect(any_shop.store, NOTHING)
    catalogue = any_shop.catalogue()
    assert catalogue.manifests == {}
    after = trace(catalogue, find_artifact(catalogue, f"{any_shop.results[0].run}:child")).to_json()
    assert [step.pop("gone") for step in after["steps"]] == [True, True]
    assert [step.pop("gone") for step in before["steps"]] == [False, False]
    assert after == before


def test_tagged_runs_and_artifacts_stay_with_what_they_were_made_from(shop: Shop, capsys) -> None:
    first, second, _ = shop.results
    give_tag(shop.store, first.run, "kept")
    give_tag(shop.store, f"{second.run}:child.model", "best")
    collect(shop.store, NOTHING)
    assert all(shop.has(manifest) for manifest in first.manifests.values())
    assert shop.has(second.manifests["child"])
    assert not shop.has(second.manifests["score"])
    collect(shop.store, Policy(0, keep_tagged=False, keep_newest=False))
    assert not shop.has(first.manifests["base"])


def test_the_newest_result_of_a_stage_stays_unless_told(shop: Shop) -> None:
    third = shop.results[2].manifests
    stays = {item.manifest.key: item.why for item in look(shop, Policy(keep_last=0)) if not item.goes and item.manifest}
    assert stays == {made.key: f"the newest result of {stage} in shop" for stage, made in third.items()}
    assert all(item.goes for item in look(shop, NOTHING))


def test_the_newest_result_of_another_machine_stays(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(bench.directory / "one"))
    bench.store = open_store(f"memory://{uuid.uuid4().hex}/store")
    there = make_shop(bench)
    monkeypatch.setenv("REGRAFT_CACHE", str(bench.directory / "two"))
    bench.store = open_store(bench.store.location)
    here = Shop(bench, there.results)
    stays = {item.manifest.key: item.why for item in look(here, Policy(keep_last=0)) if not item.goes and item.manifest}
    third = there.results[2].manifests
    assert stays == {made.key: f"the newest result of {stage} in shop" for stage, made in third.items()}


def test_only_what_was_not_used_for_long_goes(shop: Shop) -> None:
    old = Policy(keep_last=1, older_than=86400)
    assert not [item for item in look(shop, old) if item.goes]
    assert len([item for item in look(shop, old, now=time.time() + 2 * 86400) if item.goes]) == 4


def test_a_cached_stage_counts_as_used(shop: Shop) -> None:
    again = shop.bench.run(PIPELINE, "child.size=20")
    assert set(again.states.values()) == {"cached"}
    collect(shop.store, LAST)
    assert shop.has(shop.results[0].manifests["child"])
    assert not shop.has(shop.results[2].manifests["child"])


def test_what_a_live_run_may_read_stays(shop: Shop) -> None:
    open_run(shop, "live", Holder.here("live"))
    assert {item.manifest.method for item in look(shop, NOTHING) if item.goes and item.manifest} == {
        "tests.report.toys:Measure"
    }


def test_a_dead_run_protects_nothing(shop: Shop) -> None:
    gone = Holder(**{**vars(Holder.here("dead")), "pid": 2**22 + 1})
    open_run(shop, "dead", gone)
    assert all(item.goes for item in look(shop, NOTHING))


def open_run(shop: Shop, name: str, holder: Holder) -> None:
    directory = shop.store.run_directory(name)
    directory.mkdir(parents=True)
    (directory / "open").write_text(holder.to_json())
    event = {"event": "run-started", "time": 1.0, "run": name, "pipeline": "other"}
    event["stages"] = [{"name": "a", "uses": "tests.report.toys:Make"}]
    (directory / "journal.jsonl").write_text(json.dumps(event) + "\n")


def test_a_run_that_starts_meanwhile_stops_the_sweep(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = shop.catalogue()
    weighed = find_alive(shop.store)
    items = survey(catalogue, NOTHING, weighed)
    real = StoreFiles.remove_tree

    def remove_and_start(self: StoreFiles, name: str) -> None:
        real(self, name)
        open_run(shop, "live", Holder.here("live"))

    monkeypatch.setattr(StoreFiles, "remove_tree", remove_and_start)
    swept = sweep(catalogue, items, weighed)
    assert (len(swept.removed), swept.stopped_by) == (1, "live")
    assert len(shop.catalogue().manifests) == len(items) - 1


def test_a_run_that_starts_during_the_survey_stops_the_sweep(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Catalogue.read

    def read_and_start(store: Store) -> Catalogue:
        found = real(store)
        open_run(shop, "live", Holder.here("live"))
        return found

    monkeypatch.setattr(Catalogue, "read", read_and_start)
    items, swept = collect(shop.store, NOTHING)
    assert any(item.goes for item in items)
    assert (swept.removed, swept.stopped_by) == ((), "live")


def test_what_a_weighed_run_begins_to_make_meanwhile_is_left(shop: Shop) -> None:
    scratch = shop.store.root / "scratch" / ("b" * 24) / "attempt"
    scratch.mkdir(parents=True)
    open_run(shop, "live", Holder.here("live"))
    weighed = find_alive(shop.store)
    items = survey(shop.catalogue(), NOTHING, weighed)
    assert shop.store.claim("b" * 64, Holder.here("live")).attempt()
    swept = sweep(shop.catalogue(), items, weighed)
    assert scratch.is_dir()
    assert {item.kind for item in swept.removed} == {"artifact"}


@EVERYWHERE
def test_a_sweep_that_is_cut_off_leaves_a_whole_store(any_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = any_shop
    real = StoreFiles.remove_tree
    monkeypatch.setattr(StoreFiles, "remove_tree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        collect(shop.store, LAST)
    monkeypatch.setattr(StoreFiles, "remove_tree", real)
    catalogue = shop.catalogue()
    assert len(catalogue.manifests) == 6, "one manifest is gone, and its files are nothing"
    assert all(shop.store.damage(manifest) is None for manifest in catalogue.manifests.values())
    assert [item.kind for item in look(shop, LAST) if item.goes].count("unfinished") == 1
    collect(shop.store, LAST)
    assert not [item for item in look(shop, LAST) if item.goes]
    assert shop.bench.run(PIPELINE, "child.size=20").ok


def test_leftovers_of_dead_runs_go(shop: Shop) -> None:
    root = shop.store.root
    held = "a" * 24
    for name in (
        f"scratch/{'b' * 24}/attempt/state",
        f"scratch/{held}/attempt/state",
        "work/dead/c-1/out",
        "damaged/x/file",
    ):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"12345")
    items = {item.path: item for item in look(shop, LAST, Alive(keys={held: "run r"})) if item.kind != "artifact"}
    assert {path: (item.goes, item.bytes) for path, item in items.items()} == {
        f"scratch/{'b' * 24}": (True, 5),
        f"scratch/{held}": (False, 5),
        "work/dead": (True, 5),
        "damaged/x": (True, 5),
    }
    collect(shop.store, LAST)
    assert not list(root.glob("scratch/*")) + list(root.glob("work/*")) + list(root.glob("damaged/*"))


def test_a_survey_beside_checkpoints_that_come_and_go(shop: Shop) -> None:
    scratch = shop.store.root / "scratch" / ("b" * 24) / "attempt"
    over = threading.Event()

    def rotate() -> None:
        for step in itertools.count():
            if over.is_set():
                return
            directory = scratch / f"step-{step}"
            directory.mkdir(parents=True)
            for name in range(50):
                (directory / str(name)).touch()
            shutil.rmtree(directory)

    thread = threading.Thread(target=rotate)
    scratch.mkdir(parents=True)
    thread.start()
    try:
        for _ in range(60):
            assert any(item.kind == "scratch" for item in look(shop, LAST))
    finally:
        over.set()
        thread.join()


@EVERYWHERE
def test_leases_of_runs_that_are_over_go(any_shop: Shop) -> None:
    store = any_shop.store
    over = any_shop.results[0].run
    for holder, key in ((dead("died"), "a"), (far(over), "b"), (far("alive"), "c")):
        assert store.claim(key * 64, holder).attempt()
    found = {item.path: (item.goes, item.why) for item in look(any_shop, LAST) if item.kind == "lease"}
    assert found == {
        f"leases/{'a' * 24}": (True, "left by run died, which is over"),
        f"leases/{'b' * 24}": (True, f"left by run {over}, which is over"),
    }
    collect(store, LAST)
    assert store.leases.files.list_keys() == ["c" * 24]


def test_scratch_that_a_kept_run_can_go_on_from_stays(bench) -> None:
    failed = bench.run('name: broken\nstages: {s: {uses: "tests.toy:Fail"}}\n')
    assert not failed.ok
    shop = Shop(bench, [failed])
    found = [(item.name[:2], item.goes, item.why) for item in look(shop, LAST) if item.kind == "scratch"]
    assert found == [("s ", False, f"run {failed.run} can go on from it")]
    assert all(item.goes for item in look(shop, NOTHING))


def test_a_manifest_of_another_version_is_left_alone(shop: Shop) -> None:
    made = shop.results[0].manifests["child"]
    file = shop.store.directory(made.method, made.key) / "manifest.json"
    file.write_text('{"version": 99}')
    found = [item for item in look(shop, NOTHING) if item.kind == "unfinished"]
    assert [item.goes for item in found] == [False]
    assert "another version" in found[0].why


def test_two_at_once(shop: Shop) -> None:
    from pipelines.lineage.cursor import locked

    with locked(shop.store.root / "gc.lock"), pytest.raises(UserError, match="another gc is at work"):
        collect(shop.store, LAST)


@pytest.mark.parametrize("what", ["tags/best.json", "manifest.json", "lineage/"])
def test_what_cannot_be_read_now_is_not_taken_for_gone(bench, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(bench.directory / "cache"))
    bench.store = open_store(f"memory://{uuid.uuid4().hex}/store")
    shop = make_shop(bench)
    collect(shop.store, LAST)
    give_tag(shop.store, shop.results[2].run, "best")
    real = shop.store.remote.cat_file

    def throttled(path: str, **more: object) -> bytes:
        if what in path:
            raise OSError("slow down")
        return real(path, **more)

    monkeypatch.setattr(shop.store.remote, "cat_file", throttled)
    with pytest.raises(UnreachableError, match="slow down"):
        collect(shop.store, NOTHING)
    monkeypatch.undo()
    assert all(shop.has(manifest) for manifest in shop.results[2].manifests.values())


def test_a_damaged_tag_keeps_everything(shop: Shop) -> None:
    tags = Path(shop.store.root / "tags")
    tags.mkdir()
    (tags / "best.json").write_text("{")
    with pytest.raises(UserError, match="this tag cannot be read"):
        collect(shop.store, NOTHING)
    assert len(Catalogue.read(shop.store).manifests) == 7
