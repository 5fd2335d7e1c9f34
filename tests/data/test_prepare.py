from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from stages.artifacts import Dataset, DatasetCard, Model
from stages.data.corpus import read_documents, unite
from stages.data.drops import Drops
from stages.data.packing import Packer
from stages.data.prepare import PrepareData, PrepareDataParams
from stages.data.screening import Portion, Screening, normalise, screen
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.stage import Context, Resources
from tests.tiny import text_dataset, tiny_model, tiny_text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_model(tmp_path_factory.mktemp("model")))


def prepare(
    text: Dataset,
    model: Model,
    out: Path,
    seed: int = 0,
    workers: int = 1,
    evaluations: list[Dataset] | None = None,
    **params: Any,
) -> Context:
    stage = PrepareData(PrepareDataParams(**{"sequence_length": 32, "heldout_fraction": 0.2, **params}))
    inputs = {"text": text, "model": model} | ({"evaluations": evaluations} if evaluations else {})
    stage.preflight()
    stage.check(inputs)
    context = Context(
        inputs=inputs, out=out / "out", scratch=out / "scratch", seed=seed, resources=Resources(workers=workers)
    )
    stage.run(context)
    return context


def written(directory: Path, texts: list[str]) -> Dataset:
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), directory / "shard-00000.parquet")
    DatasetCard("text", num_rows=len(texts), num_bytes=0, licence="CC0-1.0", source="here").write(directory)
    return Dataset(directory)


def ids(context: Context, side: str) -> np.ndarray:
    return TokenWindows(Dataset(context.output(side)), context.scratch).tensor().numpy()


def documents(context: Context, side: str, model: Model) -> list[str]:
    """The documents of a side, whole and in order, read back from the ids; the last may be cut."""
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    eos = tokenizer.token_to_id("<|endoftext|>")
    parts = np.split(stream := ids(context, side).reshape(-1), np.flatnonzero(stream == eos))
    return [tokenizer.decode(part.tolist()) for part in parts]


def test_every_token_of_every_document_is_there_but_the_tail(tmp_path: Path, model: Model):
    context = prepare(text_dataset(tmp_path / "text"), model, tmp_path)
    texts = set(tiny_text())
    for side in ("train", "heldout"):
        whole, last = documents(context, side, model)[:-1], documents(context, side, model)[-1]
        assert set(whole) <= texts
        assert any(text.startswith(last) for text in texts)
    found = context.results
    assert found["train_documents"] + found["heldout_documents"] == found["documents"] == len(texts)
    assert found["train_tail_tokens"] < 32
    sides = [set(documents(context, side, model)[:-1]) for side in ("train", "heldout")]
    assert not sides[0] & sides[1]


def test_the_card_counts_the_bytes_that_were_packed(tmp_path: Path, model: Model):
    context = prepare(text_dataset(tmp_path / "text"), model, tmp_path)
    for side in ("train", "heldout"):
        card = Dataset(context.output(side)).card
        decoded = sum(len(text.encode()) for text in documents(context, side, model))
        assert card.num_bytes == decoded
        assert card.num_tokens == card.num_rows * 32 == ids(context, side).size
        assert card.sequence_length == 32
        assert card.tokenizer == model.tokenizer_fingerprint
        assert card.licence == "CC0-1.0"


def test_columns_are_int32_lists_of_one_length(tmp_path: Path, model: Model):
    context = prepare(text_dataset(tmp_path / "text"), model, tmp_path)
    column = pq.read_schema(Dataset(context.output("train")).shards[0]).field("input_ids")
    assert column.type == pa.list_(pa.int32(), 32)


def test_the_order_of_the_input_does_not_matter(tmp_path: Path, model: Model):
    texts = tiny_text(80)
    forwards = prepare(written(tmp_path / "f", texts), model, tmp_path / "a")
    backwards = prepare(written(tmp_path / "b", texts[::-1]), model, tmp_path / "b")
    for side in ("train", "heldout"):
        assert (ids(forwards, side) == ids(backwards, side)).all()


def test_equal_work_gives_equal_bytes_and_the_seed_orders(tmp_path: Path, model: Model):
    text = text_dataset(tmp_path / "text")
    runs = [prepare(text, model, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    contents = [{str(f.relative_to(c.out)): f.read_bytes() for f in c.out.rglob("*") if f.is_file()} for c in runs]
    assert contents[0] == contents[1]
    first, other = (documents(runs[index], "train", model)[:-1] for index in (0, 2))
    assert first != other
    assert len(set(first) & set(other)) >= len(first) - 4


def test_a_document_keeps_its_side_in_any_corpus_and_for_any_seed(tmp_path: Path, model: Model):
    small = prepare(written(tmp_path / "s", tiny_text(60)), model, tmp_path / "a")
    large = prepare(written(tmp_path / "l", tiny_text(60) + tiny_text(90, seed=7)), model, tmp_path / "b", seed=5)
    heldout = set(documents(small, "heldout", model)[:-1])
    assert heldout
    assert not heldout & set(documents(large, "train", model))


def test_the_heldout_windows_do_not_depend_on_max_tokens(tmp_path: Path, model: Model):
    text = text_dataset(tmp_path / "text")
    full, short = prepare(text, model, tmp_path / "a"), prepare(text, model, tmp_path / "b", max_tokens=100)
    assert (ids(full, "heldout") == ids(short, "heldout")).all()
    assert ids(short, "train").shape == (3, 32)
    assert (ids(full, "train")[:3] == ids(short, "train")).all()
    card = Dataset(short.output("train")).card
    assert card.num_bytes == sum(len(text.encode()) for text in documents(short, "train", model))


def test_dropped_documents_are_counted_by_reason(tmp_path: Path, model: Model):
    texts = [*tiny_text(40), tiny_text(1)[0] + "  \r\n", "", " \n ", "Short."]
    found = prepare(written(tmp_path / "t", texts), model, tmp_path, min_characters=20).results
    assert [found[f"dropped_{reason}"] for reason in ("empty", "short", "duplicates")] == [2, 1, 1]
    assert found["train_documents"] + found["heldout_documents"] == 40
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert report["metrics"] == found


def test_documents_may_be_joined_by_a_blank_line(tmp_path: Path, model: Model):
    context = prepare(text_dataset(tmp_path / "text"), model, tmp_path, separator="blank-line")
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    stream = tokenizer.decode(ids(context, "train").reshape(-1).tolist(), skip_special_tokens=False)
    assert set(stream.split("\n\n")[:-1]) <= set(tiny_text())
    assert Dataset(context.output("train")).card.num_bytes == len(stream.encode())


def test_normalising_is_idempotent_and_plain():
    assert normalise(" a\u0308\r\nb \t\n\n\n\nc\rd ") == "\u00e4\nb\n\nc\nd"


@given(st.text(alphabet=st.sampled_from("ab \n\r\té\u0301"), max_size=40))
def test_normalising_twice_changes_nothing(text: str):
    assert normalise(normalise(text)) == normalise(text)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(2, 9), st.none() | st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_packing_keeps_the_stream_and_its_bytes(tmp_path_factory: Any, sizes: list[int], length: int, capacity: Any):
    directory = tmp_path_factory.mktemp("packed")
    packer = Packer(directory, length, ([0], 0), capacity)
    stream: list[int] = []
    for number, size in enumerate(sizes):
        packer.add(number, np.full(size, number + 1, np.int32), 2 * size)
        stream += [*[number + 1] * size, 0]
    packer.close(lambda number, token: 2 * token)
    windows = min(len(stream) // length, capacity or len(stream))
    packed = stream[: windows * length]
    shards = sorted(directory.glob("*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard)["input_ids"].to_pylist()]
    assert [token for row in rows for token in row] == packed
    assert packer.num_windows == windows
    assert packer.num_bytes == 2 * sum(token != 0 for token in packed)
    assert packer.num_tail_tokens == len(stream) - len(packed) if capacity is None else True


def test_the_corpus_reads_back_every_document_once(tmp_path: Path):
    texts = tiny_text(700)
    dataset = written(tmp_path / "text", texts)
    portion, drops = Portion(dataset.shards[0], 0, 0, tmp_path / "portion.arrow"), Drops()
    drops.merge(screen(Screening(), portion))
    corpus = unite([portion], tmp_path / "c.arrow", drops, exact=True, similarity=None)
    first, second = (read_documents(corpus.file, corpus.order(seed).tolist()) for seed in (0, 1))
    assert sorted(first) == sorted(second) == sorted(set(texts))
    assert first != second


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path):
    bare = tiny_model(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        prepare(text_dataset(tmp_path / "text"), Model(bare), tmp_path)


def test_a_tokenizer_without_an_end_token_is_told_what_to_do(tmp_path: Path):
    bare = tiny_model(tmp_path / "bare")
    (bare / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="no end-of-text token") as caught:
        prepare(text_dataset(tmp_path / "text"), Model(bare), tmp_path)
    assert "blank-line" in caught.value.fix


def test_windows_longer_than_the_context_are_refused(tmp_path: Path, model: Model):
    with pytest.raises(UserError, match="sequence_length: 512 exceeds the model's context of 256"):
        prepare(text_dataset(tmp_path / "text"), model, tmp_path, sequence_length=512)


def test_an_empty_held_out_side_says_so(tmp_path: Path, model: Model):
    with pytest.raises(UserError, match="heldout has 0 tokens of 0 documents \\(of 3 in all\\)") as caught:
        prepare(text_dataset(tmp_path / "text", 3), model, tmp_path, heldout_fraction=0.001)
    assert "raise heldout_fraction" in caught.value.fix


def test_less_text_than_a_window_says_both_numbers(tmp_path: Path, model: Model):
    with pytest.raises(UserError, match=r"has \d+ tokens .* less than one window of sequence_length: 256"):
        prepare(text_dataset(tmp_path / "text", 2), model, tmp_path, sequence_length=256, heldout_fraction=0.5)


def test_documents_kept_apart_count_their_positions_from_nought(tmp_path: Path, model: Model):
    text = text_dataset(tmp_path / "text")
    apart, plain = (prepare(text, model, tmp_path / kind, attention=kind) for kind in ("document", "window"))
    apart_ids = windows(apart).tensor().numpy()
    assert (apart_ids == ids(plain, "train")).all()
    eos = Tokenizer.from_file(str(model.path / "tokenizer.json")).token_to_id("<|endoftext|>")
    positions = windows(apart).positions(range(len(apart_ids))).numpy()
    for row, places in zip(apart_ids, positions, strict=True):
        expected, place = [], 0
        for token in row:
            expected.append(place)
            place = 0 if token == eos else place + 1
        assert places.tolist() == expected
    assert (ids(apart, "heldout") == ids(plain, "heldout")).all()
    assert windows(plain).positions([0]) is None


def windows(context: Context) -> TokenWindows:
    return TokenWindows(Dataset(context.output("train")), context.scratch, apart=True)


def test_who_cannot_keep_documents_apart_refuses_such_data(tmp_path: Path, model: Model):
    context = prepare(text_dataset(tmp_path / "text"), model, tmp_path, attention="document")
    with pytest.raises(UserError, match=r"attention: document\), and this stage would let them"):
        ids(context, "train")


def test_datasets_maps_the_shards(tmp_path: Path, model: Model):
    from datasets import load_dataset

    context = prepare(text_dataset(tmp_path / "text"), model, tmp_path)
    files = [str(shard) for shard in Dataset(context.output("train")).shards]
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.cache_files
    assert (np.array(rows["input_ids"][:]) == ids(context, "train")).all()


def test_a_limit_below_one_window_is_found_before_the_run(model: Model):
    with pytest.raises(UserError, match="max_tokens: 10 is less than one window of sequence_length: 32"):
        PrepareData(PrepareDataParams(sequence_length=32, max_tokens=10)).preflight()
