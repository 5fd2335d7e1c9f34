"""Publishing, finding and fetching, on a disk and behind an fsspec URL."""

import json
import subprocess
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.store import Manifest, Store, open_store
from stages.artifacts import Dataset, Report
from stages.errors import UserError
from stages.stage import Output

OUTPUTS = {"text": Output(Report)}


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    return open_store(str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/store")


def draft(key="k" * 64) -> Manifest:
    return Manifest(
        key, "tests.toy:Copy", {"method": "m"}, {"code": "1"}, {}, {"length": 3.0}, {"seconds": 1}, "run", "stage"
    )


def publish(store: Store, text="abc", key="k" * 64) -> Manifest:
    workspace = store.workspace(key)
    (workspace / "text" / "deep").mkdir(parents=True)
    (workspace / "text" / "deep" / "file.json").write_text(json.dumps(text))
    return store.publish(draft(key), OUTPUTS, workspace)


def test_what_is_published_is_found_and_fetched(store):
    assert store.find("tests.toy:Copy", "k" * 64) is None
    manifest = publish(store)
    again = open_store(store.location)
    found = again.find("tests.toy:Copy", "k" * 64)
    assert found == manifest
    assert again.damage(found, read=True) is None
    assert json.loads((again.fetch(found, "text") / "deep" / "file.json").read_text()) == "abc"
    assert list((store.root / "work").glob("*/*")) == []


def test_the_digest_is_of_content_only(store):
    one, two, other = publish(store), publish(store, key="l" * 64), publish(store, "abd", key="m" * 64)
    assert one.outputs["text"].digest == two.outputs["text"].digest != other.outputs["text"].digest


def test_the_first_publication_stays(store):
    first = publish(store, "abc")
    assert publish(store, "abd") == first


def test_a_missing_output_is_refused(store):
    workspace = store.workspace("k" * 64)
    with pytest.raises(UserError, match="wrote nothing for its output 'text'"):
        store.publish(draft(), OUTPUTS, workspace)
    assert store.find("tests.toy:Copy", "k" * 64) is None


def test_an_unfinished_upload_is_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    real = type(store.remote).pipe_file
    monkeypatch.setattr(
        type(store.remote), "pipe_file", lambda *_, **__: (_ for _ in ()).throw(OSError("network gone"))
    )
    with pytest.raises(OSError, match="network gone"):
        publish(store)
    assert store.find("tests.toy:Copy", "k" * 64) is None, "files are up, the manifest is not"
    monkeypatch.setattr(type(store.remote), "pipe_file", real)
    assert store.find("tests.toy:Copy", publish(store).key)


def test_remote_damage_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    store = open_store(f"memory://{uuid.uuid4().hex}")
    manifest = publish(store)
    address = f"{store.uri(manifest, 'text')}/deep/file.json".replace("memory://", "/")
    store.remote.pipe_file(address, b"xxxxx")
    assert store.damage(manifest) is None, "the same size"
    assert "changed" in store.damage(manifest, read=True)
    store.remote.rm_file(address)
    assert "missing" in store.damage(manifest)


def test_a_copied_store_is_whole(tmp_path):
    store = open_store(str(tmp_path / "store"))
    manifest = publish(store)
    subprocess.run(["cp", "-r", str(tmp_path / "store"), str(tmp_path / "copy")], check=True)
    copy = open_store(str(tmp_path / "copy"))
    assert copy.damage(manifest) is None
    assert copy.fetch(manifest, "text").is_dir()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 99}', '{"version": 1}', '{"version": 1, "outputs": {"a": 3}}']
)
def test_a_damaged_manifest_is_no_manifest(tmp_path, text):
    store = open_store(str(tmp_path / "store"))
    manifest = publish(store)
    (store.directory(manifest.method, manifest.key) / "manifest.json").write_text(text)
    assert store.find(manifest.method, manifest.key) is None
    assert publish(store) == manifest, "and the artifact can be made again"


def publish_dataset(tmp_path, schema: str, table: pa.Table | None) -> Manifest:
    store = open_store(str(tmp_path / "store"))
    workspace = store.workspace("k" * 64)
    (workspace / "data").mkdir()
    (workspace / "data" / "dataset.json").write_text(json.dumps({"schema": schema}))
    if table is not None:
        pq.write_table(table, workspace / "data" / "shard-0.parquet")
    return store.publish(draft(), {"data": Output(Dataset)}, workspace)


IDS = pa.array([[1, 2]], pa.list_(pa.int32()))
TURNS = [[{"role": "user", "content": "hi", "name": "x"}]]


@pytest.mark.parametrize(
    ("schema", "table"),
    [
        ("tokens", pa.table({"input_ids": IDS, "more": ["x"]})),
        ("tokens", pa.table({"input_ids": pa.array([[1, 2]], pa.large_list(pa.int32()))})),
        ("text", pa.table({"text": pa.array(["x"], pa.large_string())})),
        ("messages", pa.table({"messages": TURNS})),
    ],
)
def test_a_dataset_s_schema_is_recorded(tmp_path, schema, table):
    assert publish_dataset(tmp_path, schema, table).outputs["data"].schema == schema


@pytest.mark.parametrize(
    ("schema", "table", "problem"),
    [
        ("tokens", None, "there is none"),
        ("tokens", pa.table({"ids": IDS}), r"no column 'input_ids' \(list<int32>\); it has ids"),
        ("tokens", pa.table({"input_ids": [[1, 2]]}), "is list<int64>, expected list<int32>"),
        ("messages", pa.table({"messages": [[{"role": "user"}]]}), "content"),
        ("trajectories", pa.table({"trajectory": TURNS}), "no column 'reward'"),
        ("nonsense", pa.table({"text": ["x"]}), "no schema 'nonsense'"),
    ],
)
def test_a_dataset_without_its_columns_is_refused(tmp_path, schema, table, problem):
    with pytest.raises(UserError, match=problem):
        publish_dataset(tmp_path, schema, table)


def test_unusable_places(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the store"):
        open_store(str(tmp_path / "file" / "store"))
    with pytest.raises(UserError, match="cannot open the store nosuch://x"):
        open_store("nosuch://x")


def test_a_command_names_the_store_unless_it_takes_it_anyway(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REGRAFT_STORE", raising=False)
    here = open_store(".regraft")
    there = open_store("a store")
    monkeypatch.chdir("/")  # as `resume` does, to where the run was started: the person stays where he is
    assert here.command("status") == "regraft status"
    assert there.command("status") == f"regraft status --store '{tmp_path}/a store'"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGRAFT_STORE", "a store")
    assert open_store("a store").command("status") == "regraft status"
    assert open_store(".regraft").command("status") == f"regraft status --store {tmp_path}/.regraft"
    monkeypatch.setenv("REGRAFT_STORE", "memory://some/store/")
    assert open_store("memory://some/store").command("status") == "regraft status"
