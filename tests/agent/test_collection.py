"""The index on disk and the tools over it."""

from __future__ import annotations

import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.agent.conversation.messages import ToolCall
from stages.agent.conversation.records import read_tasks
from stages.agent.environment.collection import FILE, Collection, build, split_title
from stages.agent.environment.index import AgentIndex
from stages.agent.environment.research import ToolSettings, make_tools, open_environment
from stages.agent.environment.toolbox import Toolbox
from stages.artifacts import Dataset, DatasetCard
from stages.errors import UserError
from tests.agent.world import TEXTS, make_index, run, text_dataset


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Dataset:
    return make_index(tmp_path_factory.mktemp("index"))


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("silver harbours", "Silver Harbour"),  # stemmed
        ("who wrote the glass orchard", "The Glass Orchard"),
        ("NORTHGATE", "Northgate Observatory"),
        ("kind of bread made from rye", "Rye bread"),
    ],
)
def test_search_finds_what_fits_best(index, query, first):
    assert Collection(index.path).search(query, 3)[0].title == first


def test_the_marks_of_a_word_are_searched_with_it(tmp_path):
    found = build(tmp_path, [("1", "दाल हल नमक हद नद दल"), ("2", "हिन्दी एक भाषा है")])
    assert [hit.id for hit in found.search("हिन्दी", 3)] == [2]


def test_a_title_tells_more_than_a_mention(index):
    hits = Collection(index.path).search("observatory", 3)
    assert {hit.title for hit in hits[:2]} == {"Northgate Observatory", "Observatory"}
    assert hits[2].title == "Comet Lindqvist"


@given(st.text() | st.sampled_from(['"', "NEAR(", "a OR", "title:x", "*", "_", "ª", "-x", "'; DROP TABLE documents"]))
def test_no_query_breaks_it(index, query):
    found = Collection(index.path)
    assert len(found.search(query, 2)) <= 2
    assert len(found) == len(TEXTS)


def test_documents_by_number(index):
    found = Collection(index.path)
    assert [d.id for d in found.documents()] == list(range(1, 13))
    assert found.read(7).title == "Rye bread"
    assert [found.read(n) for n in (0, -1, 13, 10**12)] == [None] * 4


def test_it_reads_from_threads_and_copies(index):
    found = pickle.loads(pickle.dumps(Collection(index.path)))
    results = []
    thread = threading.Thread(target=lambda: results.append(found.search("bread", 1)[0].title))
    thread.start()
    thread.join()
    assert results == ["Rye bread"]


def test_equal_documents_give_equal_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        build(tmp_path / name, [("t", "one two"), ("u", "three")])
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_missing_and_damaged_indexes_are_refused(tmp_path, index):
    with pytest.raises(UserError, match="no index"):
        Collection(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="is no index"):
        Collection(tmp_path)
    (tmp_path / FILE).write_bytes((index.path / FILE).read_bytes())
    with pytest.raises(UserError, match="no sound tools"):
        make_tools(tmp_path)


def test_titles():
    assert split_title("Alien -- A film -- indeed", " -- ") == ("Alien", "A film -- indeed")
    assert split_title("1 2 3 4 5 6 7 8", " -- ") == ("1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8")
    assert split_title("1 2 3 4 5 6 7 8 9", " -- ") == ("1 2 3 4 5 6 7 8…", "1 2 3 4 5 6 7 8 9")
    assert split_title(" -- x", " -- ") == ("-- x", "-- x")
    assert split_title("one", "") == ("one", "one")


def test_tools_say_what_models_can_use(index):
    _, tools = make_tools(index.path)
    with Toolbox(tools) as toolbox:
        listed, read, as_text, wrong, odd, nothing = toolbox.call(
            [
                ToolCall("search", {"query": "glass orchard"}),
                ToolCall("visit", {"id": 2}),
                ToolCall("visit", {"id": " 2 "}),
                ToolCall("visit", {"id": 99}),
                ToolCall("visit", {"id": "²"}),
                ToolCall("search", {"query": "?"}),
            ]
        )
    assert listed.text.splitlines()[0].startswith("[2] The Glass Orchard: The Glass Orchard is a novel")
    assert len(listed.text.splitlines()) == 3
    assert read == as_text
    assert read.text.startswith("The Glass Orchard\nThe Glass Orchard is a novel written by Tomas Weld")
    assert (wrong.failure, wrong.text) == ("arguments", "Error: there is no document '99'")
    assert odd.failure == "arguments"
    assert nothing.text == "Nothing found."


def test_the_stage_keeps_how_tools_answer(tmp_path):
    index = make_index(tmp_path, search_results=1, visit_characters=100, limit=3)
    assert ToolSettings.read(index.path) == ToolSettings(1, 100)
    collection, tools = make_tools(index.path)
    assert len(collection) == 3 == index.card.num_rows
    assert len(tools["search"](query="a film or a novel").splitlines()) == 1
    assert len(tools["visit"](id=2)) <= len("The Glass Orchard\n") + 101
    assert index.card.licence == "CC0-1.0"


def test_nothing_to_index_is_refused(tmp_path):
    with pytest.raises(UserError, match="no documents"):
        run(AgentIndex, {"text": text_dataset(tmp_path / "t", ())}, tmp_path)


def test_a_damaged_shard_and_a_binary_row_are_named(tmp_path):
    text = text_dataset(tmp_path / "t", ("one", "\x00"))
    with pytest.raises(UserError, match=r"shard-00000\.parquet row 1 is binary"):
        run(AgentIndex, {"text": text}, tmp_path)
    (shard,) = text.shards
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"shard-00000\.parquet cannot be read"):
        run(AgentIndex, {"text": text}, tmp_path)


def test_questions_without_answers_are_refused(tmp_path, index):
    with pytest.raises(UserError, match=r"row 0 .* has no answers"):
        open_environment(index, asked(tmp_path, {"messages": [{"role": "user", "content": "Who?"}]}))


def asked(directory, *rows: dict) -> Dataset:
    """Questions as others write them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), directory / "shard-00000.parquet")
    DatasetCard("messages", len(rows), 4).write(directory)
    return Dataset(directory)


def test_the_question_is_what_the_user_says_last(tmp_path):
    said = [{"role": role, "content": role[0]} for role in ("system", "user")]
    said += [{"role": "assistant", "content": "Which?"}, {"role": "user", "content": "Who?"}]
    said += [{"role": "assistant", "content": "Anna Quill"}]
    (task,) = read_tasks(asked(tmp_path, {"messages": said, "answers": ["Anna Quill"]}))
    assert task.question == "Who?"
    with pytest.raises(UserError, match=r"row 0 .* has no question"):
        read_tasks(asked(tmp_path, {"messages": said[:1], "answers": ["x"]}))


@pytest.mark.parametrize(
    ("ids", "problem"), [(("a", "b", "a"), "2 of 3 rows .* have the id 'a'"), (("1", None), "2 of 2 .* the id '1'")]
)
def test_questions_with_one_id_are_refused(tmp_path, ids, problem):
    rows = [{"messages": [{"role": "user", "content": "Who?"}], "answers": ["x"], "id": name} for name in ids]
    with pytest.raises(UserError, match=problem):
        read_tasks(asked(tmp_path, *rows))


@pytest.mark.parametrize("num", [1, 2, 4])
def test_thoughts_that_do_not_go_with_the_solution_are_refused(tmp_path, num):
    row = {"messages": [{"role": "user", "content": "Who?"}], "answers": ["x"], "thoughts": ["t"] * num}
    row |= {"solution": '[["search", {"query": "q"}], ["visit", {"id": 1}]]'}
    with pytest.raises(UserError, match=rf"row 0 .* has {num} thoughts for a solution of 2 calls") as caught:
        read_tasks(asked(tmp_path, row))
    assert caught.value.fix.startswith("give 3,")
    assert len(read_tasks(asked(tmp_path, {**row, "thoughts": ["t"] * 3}))[0].thoughts) == 3


def test_a_result_is_a_line_whatever_its_text(tmp_path):
    index = make_index(tmp_path, ["Rye -- Rye is a grain\n[7] and no wheat.", "Oat -- Oats are grain, too."])
    found = make_tools(index.path)[1]["search"](query="grain").splitlines()
    assert sorted(line.partition(":")[0] for line in found) == ["[1] Rye", "[2] Oat"]
