"""The protocols against lm-eval: the same sums on the same text."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from grafts.loader import load_model
from stages.artifacts import Dataset, Model
from stages.data.shards import TEXT
from stages.errors import UserError
from stages.evaluate.likelihood import likelihood
from stages.evaluate.text_windows import TextWindows, text_windows
from tests.tiny import text_dataset, tiny_model, tiny_text


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return text_dataset(tmp_path_factory.mktemp("data") / "text", 6)


@pytest.fixture(scope="module")
def harness(source: Model) -> Any:
    lm = pytest.importorskip("lm_eval.models.huggingface")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, tokenizer = load_model(source.path, dtype=torch.float32), AutoTokenizer.from_pretrained(source.path)
    return lm.HFLM(pretrained=model, tokenizer=tokenizer, max_length=64, batch_size=3, device="cpu")


def nats(source: Model, windows: TextWindows) -> float:
    model = load_model(source.path, dtype=torch.float32)
    found = likelihood(model, windows.windows, tail_T=windows.tail, tail_targets=windows.tail_targets)
    return found.total_nats


def joined_ids(source: Model, num_documents: int = 6) -> list[int]:
    text = "\n\n".join(tiny_text(num_documents))
    return Tokenizer.from_file(str(source.path / "tokenizer.json")).encode(text).ids


def test_rolling_windows_give_lm_evals_rolling_loglikelihood(source: Model, data: Dataset, harness: Any):
    from lm_eval.api.instance import Instance

    text = "\n\n".join(tiny_text(6))
    request = Instance("loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (theirs,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    ours = text_windows(source, data, 64, None, "rolling")
    assert ours.windows.shape == (len(joined_ids(source)) // 64, 65)
    assert ours.tail is not None
    assert len(ours.tail) == 65
    assert nats(source, ours) == pytest.approx(-theirs, rel=1e-6)


def test_disjoint_windows_give_lm_evals_sum_for_the_same_windows(source: Model, data: Dataset, harness: Any):
    ours = text_windows(source, data, 64, None, "disjoint")
    assert ours.tail is not None
    rows = [*ours.windows.tolist(), ours.tail.tolist()]
    theirs = harness._loglikelihood_tokens([(None, row[:1], row[1:]) for row in rows], disable_tqdm=True)
    assert nats(source, ours) == pytest.approx(-sum(found for found, _ in theirs), rel=1e-5)


def test_the_protocols_differ_by_the_first_token_of_one_window(source: Model, data: Dataset):
    """A whole text in one window: rolling predicts its first token as well, from the beginning-of-text token."""
    ids = joined_ids(source, 1)
    one = text_dataset(data.path.parent / "one", 1)
    disjoint, rolling = (text_windows(source, one, len(ids), None, protocol) for protocol in ("disjoint", "rolling"))
    assert disjoint.windows.tolist() == [ids]
    assert rolling.windows.tolist() == [[0, *ids]]
    assert (disjoint.tail, rolling.tail) == (None, None)


@pytest.mark.parametrize("protocol", ["disjoint", "rolling"])
@pytest.mark.parametrize("window", [2, 3, 7, 64, 10_000])
def test_windows_cover_the_text_once(source: Model, data: Dataset, protocol: Any, window: int):
    ids, overlap = joined_ids(source), protocol == "rolling"
    found = text_windows(source, data, window, None, protocol)
    rows = [row[overlap if number else 0 :] for number, row in enumerate(found.windows.tolist())]
    if found.tail is not None:
        rows.append(found.tail.tolist()[-found.tail_targets - (not (rows and overlap)) :])
    flat = [token for row in rows for token in row]
    whole = [0] * overlap + ids
    assert flat == whole[: len(flat)]
    assert len(whole) - len(flat) == (0 if overlap else len(ids) % window == 1)
    assert found.num_tokens == len(flat) - overlap
    if len(flat) == len(whole):
        assert found.num_bytes == len("\n\n".join(tiny_text(6)).encode()) == data.card.num_bytes + 5 * 2


@pytest.mark.parametrize("protocol", ["disjoint", "rolling"])
def test_a_limit_takes_the_front_and_reads_no_further(
    source: Model, data: Dataset, protocol: Any, monkeypatch: pytest.MonkeyPatch
):
    import stages.evaluate.text_windows as module

    whole = text_windows(source, data, 16, None, protocol)
    read = []
    documents = module.read_documents
    monkeypatch.setattr(module, "read_documents", lambda d: (read.append(text) or text for text in documents(d)))
    front = text_windows(source, data, 16, 2, protocol)
    assert torch.equal(front.windows, whole.windows[:2])
    assert front.tail is None
    assert front.num_tokens == 32
    assert len(read) < 6


def test_a_first_special_token_opens_the_first_disjoint_window_only(tmp_path: Path, data: Dataset):
    source = Model(tiny_model(tmp_path / "model"))
    plain = text_windows(source, data, 64, None, "disjoint")
    tokenizer = Tokenizer.from_file(str(source.path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(source.path / "tokenizer.json"))
    found = text_windows(source, data, 64, None, "disjoint")
    assert found.windows.flatten()[:101].tolist() == [0, *plain.windows.flatten()[:100].tolist()]
    assert (found.num_tokens, found.num_bytes) == (plain.num_tokens, plain.num_bytes)
    rolling = text_windows(source, data, 64, None, "rolling")
    assert rolling.windows[0, :2].tolist() == [0, plain.windows[0, 0].item()]


def test_too_little_text_and_no_special_token_are_refused(tmp_path: Path, source: Model):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = text_dataset(tmp_path / "data", 1)
    pq.write_table(pa.table({"text": [None]}, TEXT), data.shards[0])
    with pytest.raises(UserError, match="has 0 tokens"):
        text_windows(source, data, 64, None, "disjoint")
    bare = Model(tiny_model(tmp_path / "bare"))
    (bare.path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="neither a beginning-of-text nor an end-of-text token"):
        text_windows(bare, text_dataset(tmp_path / "other", 1), 64, None, "rolling")
