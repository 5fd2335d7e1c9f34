"""Records that are no text, and files that are gone: named, or counted and reported; nothing is lost without a word."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import Dataset
from stages.errors import StageError, UserError, first_line
from stages.source.dataset import SourceDataset, SourceDatasetParams
from stages.source.files import dataset_files
from stages.source.licence import card_licence
from stages.stage import Context
from tests.source.test_dataset import bring, jsonl, texts
from tests.store.s3 import bucket as bucket
from tests.store.s3 import s3_server as s3_server

GOOD = [b'{"text": "one"}', b'{"text": "two"}']
BAD = {
    b'{"text": "cut o': "is not JSON",
    '{"text": "größer"}'.encode("latin-1"): "is not UTF-8",
    b'{"text": "a\\u0000b"}': "is binary: it holds a NUL character",
    b'{"text": "\\ud800 half"}': "is not Unicode: it holds half a surrogate pair",
    b'{"txt": "misspelt"}': "has no field 'text'; did you mean 'txt'",
    b'{"text": 3}': "holds a int in field 'text', expected text",
    b'["a list"]': "holds a list, expected an object",
}


@pytest.mark.parametrize(("line", "told"), BAD.items(), ids=BAD.values())
def test_a_bad_line_stops_with_its_number_or_is_counted(tmp_path: Path, line: bytes, told: str):
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([GOOD[0], line, GOOD[1]]) + b"\n")
    with pytest.raises(UserError, match=f"in.jsonl:2 {told}"):
        bring(tmp_path / "in.jsonl", tmp_path / "error")
    context = bring(tmp_path / "in.jsonl", tmp_path / "skip", on_bad_row="skip")
    assert texts(context) == ["one", "two"]
    found = context.results
    assert found["documents_read"] == 3 == found["documents"] + found["bad_rows"]
    (shown,) = json.loads((context.output("report") / "report.json").read_text())["details"]["bad_rows"]
    assert shown.startswith(f"in.jsonl:2 {told}")


def test_a_damaged_first_line_costs_itself_alone_whatever_the_file_is_called(tmp_path: Path):
    (tmp_path / "in.json").write_bytes(b"\n".join([b'{"text": "cut o', *GOOD]) + b"\n")
    with pytest.raises(UserError, match=r"in\.json:1 is not JSON"):
        bring(tmp_path / "in.json", tmp_path / "error")
    context = bring(tmp_path / "in.json", tmp_path / "skip", on_bad_row="skip")
    assert texts(context) == ["one", "two"]
    assert context.results["bad_rows"] == 1
    (tmp_path / "list.json").write_bytes(b'[{"text": "one"},\n{"text": "two"}\n')
    with pytest.raises(UserError, match=r"list\.json is not JSON"):
        bring(tmp_path / "list.json", tmp_path / "list")


def test_all_records_read_are_kept_empty_repeated_or_bad(tmp_path: Path):
    lines = [*GOOD, *BAD, GOOD[0], b'{"text": ""}', b'{"text": null}', b""]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    found = bring(tmp_path / "in.jsonl", tmp_path, on_bad_row="skip").results
    assert found["documents_read"] == len(lines) - 1
    parts = [found[name] for name in ("documents", "empty", "duplicates", "bad_rows")]
    assert parts == [2, 2, 1, len(BAD)]
    assert sum(parts) == found["documents_read"]


def test_a_damaged_file_is_one_bad_record_and_says_from_where(tmp_path: Path):
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(20)]}), tmp_path / "a.parquet", row_group_size=10)
    content = (tmp_path / "a.parquet").read_bytes()
    place = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0).data_page_offset
    (tmp_path / "a.parquet").write_bytes(content[:place] + b"\xff" * 20 + content[place + 20 :])
    with pytest.raises(UserError, match=r"a.parquet is not parquet that can be read from row 10 of 20 on"):
        bring(tmp_path / "a.parquet", tmp_path / "error")
    found = bring(tmp_path / "a.parquet", tmp_path / "skip", on_bad_row="skip").results
    assert (found["bad_rows"], found["documents"]) == (1, 10)


def test_bytes_in_parquet_and_csv_that_are_not_utf_8(tmp_path: Path):
    latin = "größer".encode("latin-1")
    column = pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine", latin], pa.binary()).buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet row 1 is not UTF-8"):
        bring(tmp_path / "a.parquet", tmp_path)
    (tmp_path / "a.csv").write_bytes(b"text\nfine\n" + latin + b"\n")
    with pytest.raises(UserError, match=r"a.csv:3 is not Unicode"):
        bring(tmp_path / "a.csv", tmp_path)


def test_a_column_of_nothing_says_so(tmp_path: Path):
    pq.write_table(pa.table({"text": pa.array([None, None], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="gives no documents: 2 read, 2 of them empty"):
        bring(tmp_path / "a.parquet", tmp_path)
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(BAD))
    with pytest.raises(UserError, match=rf"{len(BAD)} bad, the first: bad.jsonl:1 is not JSON"):
        bring(tmp_path / "bad.jsonl", tmp_path, on_bad_row="skip")


def test_a_file_that_is_gone_stops_whatever_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [jsonl(tmp_path / "in" / f"{n}.jsonl", f"text {n}") for n in range(3)]
    stage = SourceDataset(SourceDatasetParams(dataset=str(tmp_path / "in"), on_bad_row="skip"))
    listed = dataset_files(str(tmp_path / "in"))
    monkeypatch.setattr("stages.source.origin.dataset_files", lambda _: listed)
    files[1].unlink()
    with pytest.raises(UserError, match=r"1.jsonl is gone since the run began"):
        stage.run(Context(inputs={}, out=tmp_path / "out", scratch=tmp_path / "scratch"))


def test_files_are_looked_up_once_a_run_and_the_licence_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, listed, written = jsonl(tmp_path / "in" / "a.jsonl", "one"), [], []
    (tmp_path / "in" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("stages.source.origin.dataset_files", lambda text: listed.append(text) or dataset_files(text))
    shards = tmp_path / "out" / "dataset"
    monkeypatch.setattr(
        "stages.source.origin.card_licence", lambda path: written.extend(shards.glob("*")) or card_licence(path)
    )
    stage = SourceDataset(SourceDatasetParams(dataset=str(file)))
    context = Context(inputs={}, out=tmp_path / "out", scratch=tmp_path / "scratch")
    stage.run(context)
    assert (len(listed), written) == (1, [])
    assert Dataset(context.output("dataset")).card.licence == "mit"


def test_source_code_and_markdown_are_a_document_a_file(tmp_path: Path):
    for name, text in {"a.py": "def f():\n    pass\n", "b/c.md": "# Title\n", "d.bin": "no"}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    assert texts(bring(tmp_path / "in", tmp_path / "all")) == ["def f():\n    pass\n", "# Title\n"]
    assert texts(bring(tmp_path / "in/**/*.py", tmp_path / "py")) == ["def f():\n    pass\n"]
    jsonl(tmp_path / "in" / "data.jsonl", "x")
    assert texts(bring(tmp_path / "in", tmp_path / "data")) == ["x"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    for name in ("a.txt", "a.jsonl"):
        assert texts(bring(tmp_path / name, tmp_path / name[2:])) == ["hello"]


def test_files_in_a_bucket_count_by_their_etag(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch):
    import s3fs

    remote = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], skip_instance_cache=True)
    remote.pipe(f"{bucket}/data/a.jsonl", b'{"text": "one"}\n')
    remote.pipe(f"{bucket}/data/b.jsonl", b'{"text": "two"}\n')
    url = f"s3://{bucket}/data/*.jsonl"
    assert texts(bring(url, tmp_path / "a")) == ["one", "two"]
    assert not list((tmp_path / "a/scratch/fetched").iterdir())
    before = named(url)
    assert before == named(url)
    remote.pipe(f"{bucket}/data/b.jsonl", b'{"text": "three"}\n')
    s3fs.S3FileSystem.clear_instance_cache()
    assert before["file-00000"] == named(url)["file-00000"]
    assert before["file-00001"] != named(url)["file-00001"]
    with pytest.raises(UserError, match="names no file"):
        bring(f"s3://{bucket}/none/*.jsonl", tmp_path / "none")
    with pytest.raises(UserError, match="names no file"):
        bring("s3://no-such-bucket-here/*.jsonl", tmp_path / "none")


def named(url: str) -> dict[str, Any]:
    return dict(SourceDataset(SourceDatasetParams(dataset=url)).sources())


def test_a_remote_file_that_changes_under_a_run_is_refused(tmp_path: Path):
    import fsspec

    from stages.source.remote import remote_files

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.txt", b"one")
    (file,) = remote_files("memory://corpus/*.txt")
    assert file.fetch(tmp_path).read_text() == "one"
    memory.pipe("/corpus/a.txt", b"another")
    with pytest.raises(UserError, match="has changed since the run began"):
        file.fetch(tmp_path)
    memory.rm("/corpus/a.txt")
    with pytest.raises(UserError, match="is gone since the run began"):
        file.fetch(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        remote_files("nosuch://x/y.txt")


def test_a_server_that_is_away_may_be_there_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import s3fs

    from stages.source.remote import remote_files

    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StageError, match="cannot be read"):
            remote_files("s3://bucket/a.txt")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def web_server(files: dict[str, bytes], headers: dict[str, str]) -> Iterator[str]:
    """The address of a server with these files, which says `headers` of each, and their sizes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files[self.path.strip("/")]
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("header", ["ETag", "Content-MD5", "Digest", "Last-Modified"])
def test_a_file_of_the_web_counts_by_what_its_server_says_of_its_version(tmp_path: Path, header: str):
    headers = {header: "first"}
    with web_server({"a.jsonl": b'{"text": "one"}\n'}, headers) as address:
        url = f"{address}/a.jsonl"
        assert texts(bring(url, tmp_path)) == ["one"]
        before = named(url)
        assert before == named(url) == {"file-00000": f"{url}@first"}
        headers[header] = "second"
        assert named(url) != before


def test_a_file_of_the_web_without_a_version_is_refused():
    with (
        web_server({"a.jsonl": b'{"text": "one"}\n'}, {}) as address,
        pytest.raises(UserError, match=r"tells no version of it \(ETag, .*a change could not be seen") as caught,
    ):
        named(f"{address}/a.jsonl")
    assert "name the local file" in caught.value.fix


def test_an_error_without_words_is_told_by_its_kind():
    assert [first_line(error) for error in (ConnectionError(), ValueError(" a\nb"))] == ["ConnectionError", "a"]
