"""What handles say of directories that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.artifacts import Dataset, DatasetCard, Model
from stages.errors import UserError
from tests.tiny import text_dataset


def test_a_card_is_read_as_it_was_written(tmp_path: Path):
    card = DatasetCard("tokens", num_rows=3, num_bytes=7, num_tokens=5, sequence_length=2, licence="CC0-1.0")
    card.write(tmp_path)
    assert Dataset(tmp_path).card == card


def test_fields_that_do_not_fit_are_named_with_their_file(tmp_path: Path):
    file = text_dataset(tmp_path).path / "dataset.json"
    fields = json.loads(file.read_text())
    del fields["num_rows"]
    file.write_text(json.dumps({**fields, "colour": "blue"}))
    with pytest.raises(UserError, match=r"dataset\.json do not fit \(lacks: num_rows; unknown: colour\)"):
        _ = Dataset(tmp_path).card


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "holds a list, expected an object"), (None, r"no config\.json in")],
)
def test_a_file_that_is_no_object_of_json_is_named(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        _ = Model(tmp_path).config
    assert caught.value.fix
