"""Shuffled words: the same words in another order, of the share asked for, and no way around the split."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from stages.artifacts import Dataset, Model
from stages.proxy.corrupt import ProxyCorrupt, shuffled
from tests.data.test_prepare import documents, prepare
from tests.proxy.runs import run
from tests.tiny import text_dataset, tiny_model


def texts(data: Dataset) -> list[str]:
    return [text for shard in data.shards for text in pq.read_table(shard)["text"].to_pylist()]


def test_words_stay_and_their_order_goes(tmp_path):
    source = text_dataset(tmp_path / "text", 20)
    context = run(ProxyCorrupt, {"text": source}, tmp_path)
    made = Dataset(context.output("dataset"))
    before, after = texts(source), texts(made)
    assert [sorted(text.split()) for text in before] == [sorted(text.split()) for text in after]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert made.card.num_rows == context.results["shuffled"] == 20
    assert made.card.num_bytes == sum(len(text.encode()) for text in after)
    assert made.card.licence == source.card.licence


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_share_of_the_documents_is_shuffled(share):
    documents = [f"one two three four five six seven {number}" for number in range(400)]
    changed = sum(shuffled(text, share, 0) != text for text in documents)
    assert changed == pytest.approx(400 * share, abs=40 if share else 0)
    assert [shuffled(text, share, 0) for text in documents] == [shuffled(text, share, 0) for text in documents]


def test_no_copy_of_a_held_out_document_is_trained_on(tmp_path):
    """The split goes by what a document is made of: a shuffled copy is on the side of the original."""
    source, model = text_dataset(tmp_path / "text", 120), Model(tiny_model(tmp_path / "model"))
    spoilt = Dataset(run(ProxyCorrupt, {"text": source}, tmp_path).output("dataset"))
    clean, bad = (prepare(each, model, tmp_path / name) for name, each in (("clean", source), ("bad", spoilt)))
    heldout, trained = (
        {" ".join(sorted(text.split())) for text in documents(made, side, model)[:-1]}
        for made, side in ((clean, "heldout"), (bad, "train"))
    )
    assert len(heldout) > 10
    assert len(trained) > 60
    assert not heldout & trained
    assert clean.results["heldout_documents"] == bad.results["heldout_documents"]
