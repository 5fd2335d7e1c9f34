"""Every document accounted for: reasons, samples, bad rows, evaluation text, and shards that are damaged or gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import Dataset, DatasetCard, Model
from stages.data import screening
from stages.data.drops import Drops, excerpt
from stages.data.filters import loosest
from stages.data.screening import Portion, Screening, normalise, screen
from stages.data.shingles import words_of
from stages.errors import StoppedError, UserError
from tests.data.test_filters import PROSE
from tests.data.test_prepare import documents, model, prepare, written  # noqa: F401
from tests.tiny import tiny_text

GERMAN = (
    "Der Fluss fließt durch die alte Stadt, und am Abend sitzen die Leute auf der Mauer und reden miteinander. " * 3
)


def raw(directory: Path, values: list[bytes | None]) -> Dataset:
    """A text dataset with bytes that nobody checked."""
    directory.mkdir(parents=True, exist_ok=True)
    column = pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())
    pq.write_table(pa.table({"text": column}), directory / "shard-00000.parquet")
    DatasetCard("text", num_rows=len(values), num_bytes=0).write(directory)
    return Dataset(directory)


def test_every_document_read_is_kept_or_dropped_for_one_reason(tmp_path: Path, model: Model):  # noqa: F811
    good = tiny_text(60)
    thresholds = {"gopher_quality.min_words": 10, "gopher_quality.min_stop_words": 0}
    twin = good[0].rsplit(" ", 1)[0] + " indeed."
    evaluation = written(tmp_path / "evaluation", [f"A question about it: {good[7]}", "too short to find"])
    text = written(tmp_path / "text", [*good, "", "tiny", GERMAN, "# # # # # " * 9, good[3], twin, "\x00\x01 binary"])
    params = {"filters": ["gopher_quality"], "deduplicate": "minhash", "language": "en", "min_characters": 20}
    context = prepare(
        text,
        model,
        tmp_path,
        on_bad_row="skip",
        contamination_words=8,
        evaluations=[evaluation],
        thresholds=thresholds,
        **params,
    )
    found = context.results
    told = {name.removeprefix("dropped_"): n for name, n in found.items() if name.startswith("dropped_") and n}
    assert told == {
        "unreadable": 1,
        "empty": 1,
        "short": 1,
        "language": 1,
        "gopher_quality": 1,
        "duplicates": 1,
        "near_duplicates": 1,
        "contaminated": 1,
    }
    assert found["documents"] == len(good) + 7 == found["kept_documents"] + sum(told.values())
    used = found["train_documents"] + found["heldout_documents"]
    assert found["kept_documents"] == used + found["unused_documents"]
    content = json.loads((tmp_path / "out/report/report.json").read_text())["details"]
    rows = {row["reason"]: row for row in content["dropped"]}
    assert sum(row["documents"] for row in rows.values()) == sum(told.values())
    assert all(len(row["samples"]) == min(3, row["documents"]) for row in rows.values())
    assert rows["language"]["samples"][0]["why"].startswith("de with probability 1.0")
    assert rows["contaminated"]["samples"][0]["where"] == "shard-00000.parquet row 7"
    assert rows["unreadable"]["samples"][0]["why"] == "binary: it holds a NUL character"
    assert content["evaluation_texts_too_short"] == 1
    assert (tmp_path / "out/report/dropped.svg").stat().st_size > 1000


def test_limits_leave_documents_unused_and_say_so(tmp_path: Path, model: Model):  # noqa: F811
    found = prepare(
        written(tmp_path / "t", tiny_text(600)), model, tmp_path, max_tokens=64, max_heldout_tokens=64
    ).results
    assert found["unused_documents"] > 300
    assert found["kept_documents"] == found["unused_documents"] + found["train_documents"] + found["heldout_documents"]


def test_documents_that_share_words_with_an_evaluation_set_go(tmp_path: Path, model: Model):  # noqa: F811
    texts = [*tiny_text(40), PROSE, PROSE.upper().replace(",", " ,"), " ".join(PROSE.split()[:12])]
    evaluation = written(tmp_path / "evaluation", [" ".join(PROSE.split()[10:30])])
    context = prepare(written(tmp_path / "t", texts), model, tmp_path, evaluations=[evaluation])
    assert context.results["dropped_contaminated"] == 2
    assert context.results["kept_documents"] == 41
    (sample, *_) = json.loads((tmp_path / "out/report/report.json").read_text())["details"]["dropped"][0]["samples"]
    assert sample["why"] in f"shares “{' '.join(words_of(PROSE)[10:23])}”"


def test_a_row_that_is_no_text_stops_with_its_place_or_is_counted(tmp_path: Path, model: Model):  # noqa: F811
    texts: list[bytes | None] = [text.encode() for text in tiny_text(40)]
    for value, told in (
        ("größer als früher".encode("latin-1"), "not UTF-8"),
        (b"some\x00thing", "binary: it holds a NUL"),
        (b"\x01\x02\x03 words", "binary: 3 of 9 characters"),
    ):
        dataset = raw(tmp_path / told[:6], [*texts[:17], value, *texts[17:], None])
        with pytest.raises(UserError, match=rf"shard-00000.parquet row 17 is no text: {told}") as caught:
            prepare(dataset, model, tmp_path / f"{told[:6]} error")
        assert "on_bad_row: skip" in caught.value.fix
        found = prepare(dataset, model, tmp_path / f"{told[:6]} skip", on_bad_row="skip").results
        assert (found["documents"], found["dropped_unreadable"], found["dropped_empty"]) == (42, 1, 1)


def test_a_shard_that_is_damaged_gone_or_something_else_is_named(tmp_path: Path, model: Model):  # noqa: F811
    dataset = written(tmp_path / "text", tiny_text(40))
    shard = dataset.shards[0]
    content = shard.read_bytes()
    middle = len(content) // 2
    shard.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(UserError, match=r"shard-00000.parquet cannot be read at row 0"):
        prepare(dataset, model, tmp_path / "damaged")
    shard.write_bytes(content[:middle])
    with pytest.raises(UserError, match=r"shard-00000.parquet cannot be read"):
        prepare(dataset, model, tmp_path / "cut")
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00000.parquet is gone at row 512"):
        screen(Screening(), Portion(shard, 0, 512, tmp_path / "portion.arrow"))
    pq.write_table(pa.table({"body": ["x"]}), shard)
    with pytest.raises(UserError, match=r"has no column 'text'"):
        prepare(dataset, model, tmp_path / "other")


def test_a_corpus_of_which_nothing_stays_names_the_reasons(tmp_path: Path, model: Model):  # noqa: F811
    dataset = written(tmp_path / "text", ["", "a", "b c"])
    with pytest.raises(UserError, match=r"none of the 3 documents stays: 2 gopher_quality.min_words, 1 empty"):
        prepare(dataset, model, tmp_path, filters=["gopher_quality"])


def test_a_stage_tried_again_reads_only_what_is_left(
    tmp_path: Path,
    model: Model,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    dataset = written(tmp_path / "text", [])
    texts = tiny_text(90)
    pq.write_table(pa.table({"text": texts}), dataset.shards[0], row_group_size=30)
    read: list[int] = []

    def counted(shard: Path, group: int, first_row: int) -> Any:
        read.append(first_row)
        if len(read) == 3:
            raise StoppedError("asked to")
        return read_texts(shard, group, first_row)

    read_texts = screening.read_texts
    monkeypatch.setattr(screening, "read_texts", counted)
    with pytest.raises(StoppedError):
        prepare(dataset, model, tmp_path)
    context = prepare(dataset, model, tmp_path)
    assert read == [0, 30, 60, 60]
    monkeypatch.undo()
    once = prepare(dataset, model, tmp_path / "once")
    for side in ("train", "heldout"):
        assert documents(context, side, model) == documents(once, side, model)


def test_code_keeps_its_white_space():
    code = "\ndef f():\r\n    return 1  \n\n\n\ndef g():\n\tpass\n"
    assert normalise(code, white_space="keep") == "\ndef f():\n    return 1\n\n\n\ndef g():\n\tpass\n"
    assert normalise(code) == "def f():\n    return 1\n\ndef g():\n\tpass"
    assert normalise(" \n\t\n", white_space="keep") == ""
    assert (normalise("ﬁ", "NFKC"), normalise("ﬁ")) == ("fi", "ﬁ")


def test_samples_do_not_depend_on_how_the_corpus_was_divided():
    texts = tiny_text(20)
    rows = [("short", screening.document_digest(text), f"row {n}", "", text) for n, text in enumerate(texts)]
    whole, parts = Drops(), [Drops() for _ in range(3)]
    for number, row in enumerate(rows):
        whole.add(*row)
        parts[number % 3].add(*row)
    merged = Drops()
    for part in parts[::-1]:
        merged.merge(Drops.from_json(json.loads(json.dumps(part.as_json()))))
    assert merged == whole
    assert excerpt("a\x07b\n  c" + "x" * 2000).startswith("a b cxx")
    assert len(excerpt("x" * 2000)) == 241


def test_a_language_that_is_unknown_is_refused(model: Model, tmp_path: Path):  # noqa: F811
    with pytest.raises(UserError, match="language: 'xq' is unknown"):
        prepare(written(tmp_path / "t", tiny_text(5)), model, tmp_path, language="xq")


def test_a_page_of_which_c4_keeps_no_line_is_empty():
    loose = Screening(filters=("c4",), thresholds=loosest(["c4"]))
    verdict = loose.judge("a menu\nof two lines")
    assert (verdict.reason, verdict.why) == ("empty", "C4 keeps no line")
    assert verdict.text == "a menu\nof two lines", "told with an excerpt of the page"
    assert Screening(filters=("c4",)).judge("a menu").reason == "c4.min_sentences", "a rule that it breaks says more"
    assert loose.judge("One line that is kept.").text == "One line that is kept."


def test_blanks_at_the_end_of_lines_go_and_others_stay():
    run = " \t" * 50_000
    assert normalise(f"a{run}b{run}\n{run}\nc {run}") == f"a{run}b\n\nc"
    assert normalise(f" a{run}\n b ", white_space="keep") == " a\n b"


def test_evaluation_texts_that_are_no_text_are_counted(tmp_path: Path, model: Model):  # noqa: F811
    evaluation = raw(tmp_path / "evaluation", [PROSE.encode(), "größer".encode("latin-1"), b"short", None])
    context = prepare(written(tmp_path / "t", tiny_text(40)), model, tmp_path, evaluations=[evaluation])
    details = json.loads((context.output("report") / "report.json").read_text())["details"]
    counts = [details[f"evaluation_texts{what}"] for what in ("", "_too_short", "_unreadable")]
    assert counts == [2, 1, 1]
