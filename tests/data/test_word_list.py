"""Documents that hold a word of a list: found as whole words, counted, and the list counts by its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.artifacts import Model
from stages.data.prepare import PrepareData, PrepareDataParams
from stages.data.word_list import WordList
from stages.errors import UserError
from tests.data.test_prepare import model, prepare, written  # noqa: F401
from tests.tiny import tiny_text

WORDS = WordList(["darn", "son of a gun", "s&m", "\U0001f595", "\u30d0\u30ab"])


@pytest.mark.parametrize(
    ("text", "found"),
    {
        "Well, DARN it.": "darn",
        "He darned a sock.": None,
        "A son of a gun!": "son of a gun",
        "A son of a baker.": None,
        "S&M": "s&m",
        "Mr. S. M. Smith": None,
        "so\U0001f595there": "\U0001f595",
        "\u541b\u306f\u30d0\u30ab\u3060": "\u30d0\u30ab",
        "": None,
    }.items(),
)
def test_entries_are_found_as_whole_words(text: str, found: str | None):
    assert WORDS.first_in(text) == found


def test_documents_that_hold_one_are_dropped_and_counted(tmp_path: Path, model: Model):  # noqa: F811
    (tmp_path / "list.txt").write_text("# a remark\nmountain\n\n  quiet garden  \n")
    texts = tiny_text(80)
    bad = [text for text in texts if "mountain" in text.lower() or "quiet garden" in text.lower()]
    found = prepare(written(tmp_path / "t", texts), model, tmp_path, bad_words=str(tmp_path / "list.txt")).results
    assert found["dropped_bad_words"] == len(bad) > 5
    assert found["kept_documents"] == len(texts) - len(bad)


def test_the_list_counts_by_its_content_and_must_be_there(tmp_path: Path):
    file = tmp_path / "list.txt"
    file.write_text("darn")
    params = PrepareDataParams(bad_words=str(file))
    assert dict(PrepareData(params).sources()) == {"bad_words": file}
    assert "bad_words" not in params.identity()
    file.write_text(" \n")
    with pytest.raises(UserError, match=r"list\.txt is empty"):
        PrepareData(params).preflight()
    file.unlink()
    with pytest.raises(UserError, match="there is no"):
        PrepareData(params).sources()
