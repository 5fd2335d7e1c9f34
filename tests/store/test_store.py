"""Publishing, finding and fetching, on a disk and behind an fsspec URL."""

import json
import subprocess
import uuid

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
    assert list((store.root / "work").iterdir()) == []


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


def test_a_dataset_s_schema_is_recorded(tmp_path):
    store = open_store(str(tmp_path / "store"))
    workspace = store.workspace("k" * 64)
    (workspace / "data").mkdir()
    (workspace / "data" / "dataset.json").write_text('{"schema": "tokens"}')
    assert store.publish(draft(), {"data": Output(Dataset)}, workspace).outputs["data"].schema == "tokens"


def test_unusable_places(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the store"):
        open_store(str(tmp_path / "file" / "store"))
    with pytest.raises(UserError, match="cannot open the store nosuch://x"):
        open_store("nosuch://x")
