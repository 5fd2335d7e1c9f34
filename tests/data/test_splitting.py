"""The split: a document is on the same side in every corpus, and so is whatever is made of the same characters."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.artifacts import Model
from stages.data.splitting import held_out, split_key
from tests.data.test_prepare import documents, ids, model, prepare, written  # noqa: F401
from tests.tiny import tiny_text


@given(st.text(max_size=60), st.randoms(use_true_random=False))
def test_neither_order_nor_white_space_counts(text: str, draw: random.Random):
    words = text.split()
    draw.shuffle(words)
    assert split_key(text) == split_key(" ".join(words)) == split_key("\u2028\n".join(words))


@pytest.mark.parametrize("other", ["THE OFFICE", "the o\ufb03ce", "office the", "t h e o f f i c e"])
def test_the_form_of_a_character_does_not_count(other: str):
    assert split_key(other) == split_key("the office")


def test_other_characters_are_another_document():
    texts = ["the office", "the offices", "the offic", "", *(f"document {n} of {n % 7}" for n in range(100, 200))]
    assert len({split_key(text) for text in texts[:4]}) == 4
    assert len({split_key(text) for text in texts}) > 20


def test_the_split_takes_about_its_fraction_and_grows_with_it():
    keys = np.array([split_key(text) for text in tiny_text(4000)], np.uint64)
    found = held_out(keys, 0.1)
    assert found.mean() == pytest.approx(0.1, abs=0.02)
    assert held_out(keys, 0.3)[found].all()


NOTICE = "\nThis site uses cookies."


def test_what_a_filter_takes_out_does_not_change_the_side(tmp_path: Path, model: Model):  # noqa: F811
    pages = [text.replace(". ", ".\n") + NOTICE for text in tiny_text(80)]
    plain = prepare(written(tmp_path / "p", pages), model, tmp_path / "plain")
    filtered = prepare(written(tmp_path / "p", pages), model, tmp_path / "c4", filters=["c4"])
    heldout = set(documents(filtered, "heldout", model)[:-1])
    assert len(heldout) > 5
    assert not heldout & {text.removesuffix(NOTICE) for text in documents(plain, "train", model)}


@pytest.mark.parametrize("deduplicate", ["exact", "none"])
def test_documents_that_filters_make_alike_have_one_side_in_any_order(
    tmp_path: Path,
    model: Model,  # noqa: F811
    deduplicate: str,
):
    pages = [text.replace(". ", ".\n") for text in tiny_text(60)]
    pages += [page + NOTICE for page in pages]
    made = [
        prepare(written(tmp_path / name, order), model, tmp_path / name, filters=["c4"], deduplicate=deduplicate)
        for name, order in (("forwards", pages), ("backwards", pages[::-1]))
    ]
    for side in ("train", "heldout"):
        assert (ids(made[0], side) == ids(made[1], side)).all()
