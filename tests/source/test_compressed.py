"""Compressed files give what they hold; a damaged one is told, or counted as one bad record."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.source.files import kind_of
from tests.source.test_dataset import bring, texts

DOCUMENTS = ["First, with a comma.", "Drittes: größer"]
RECORDS = [json.dumps({"text": text}) for text in DOCUMENTS]
CONTENT = {
    "a.jsonl.gz": "\n".join(RECORDS),
    "a.json.gz": f"[{','.join(RECORDS)}]",
    "lines.json.gz": "\n".join(RECORDS),
    "a.csv.gz": 'text\n"First, with a comma."\nDrittes: größer\n',
}


def packed(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content.encode(), mtime=0))
    return file


@pytest.mark.parametrize("name", CONTENT)
def test_every_kind_of_records_may_be_compressed(tmp_path: Path, name: str):
    assert texts(bring(packed(tmp_path / name, CONTENT[name]), tmp_path)) == DOCUMENTS


def test_a_document_a_file_may_be_compressed_beside_others_that_are_not(tmp_path: Path):
    packed(tmp_path / "in" / "a.txt.gz", DOCUMENTS[0])
    (tmp_path / "in" / "b.txt").write_text(DOCUMENTS[1])
    (tmp_path / "in" / "c.tar.gz").write_bytes(b"no")
    assert texts(bring(tmp_path / "in", tmp_path)) == DOCUMENTS


def test_a_directory_of_compressed_records(tmp_path: Path):
    packed(tmp_path / "in" / "a.jsonl.gz", RECORDS[0])
    (tmp_path / "in" / "b.jsonl").write_text(RECORDS[1])
    assert texts(bring(tmp_path / "in", tmp_path)) == DOCUMENTS


def test_a_file_of_lines_may_be_called_json(tmp_path: Path):
    (tmp_path / "a.json").write_text("\n".join(RECORDS))
    assert texts(bring(tmp_path / "a.json", tmp_path)) == DOCUMENTS
    (tmp_path / "a.json").write_text(json.dumps({"rows": DOCUMENTS}, indent=1))
    with pytest.raises(UserError, match=r"a\.json holds a dict, expected a list of records"):
        bring(tmp_path / "a.json", tmp_path / "dict")


@pytest.mark.parametrize("damage", ["cut", "bent", "plain"])
def test_a_damaged_file_says_how_far_it_could_be_read(tmp_path: Path, damage: str):
    draw = random.Random(0)
    lines = "\n".join(json.dumps({"text": f"{number} {draw.random()}"}) for number in range(4000))
    content = packed(tmp_path / "a.jsonl.gz", lines).read_bytes()
    damaged = {"cut": content[: len(content) // 2], "bent": content[:-8] + b"\xff" * 8, "plain": b"no"}
    (tmp_path / "a.jsonl.gz").write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is not gzip that can be read after \d+ documents") as caught:
        bring(tmp_path / "a.jsonl.gz", tmp_path / "error")
    assert "fetch it again" in caught.value.fix
    if damage == "cut":
        found = bring(tmp_path / "a.jsonl.gz", tmp_path / "skip", on_bad_row="skip").results
        assert found["bad_rows"] == 1
        assert 1000 < found["documents"] < 3000


@pytest.mark.parametrize(
    ("name", "kind"),
    {"a.jsonl": ".jsonl", "a.b.jsonl.gz": ".jsonl", "a.gz": "", "a.parquet.gz": ".gz", "a.tar.gz": ".tar"}.items(),
)
def test_the_kind_of_a_file(name: str, kind: str):
    assert kind_of(name) == kind


def test_what_cannot_be_read_names_what_can(tmp_path: Path):
    packed(tmp_path / "a.parquet.gz", "x")
    with pytest.raises(UserError, match=r"names no data file: found a\.parquet\.gz") as caught:
        bring(tmp_path / "a.parquet.gz", tmp_path)
    assert "all but .parquet with .gz behind it" in caught.value.fix
