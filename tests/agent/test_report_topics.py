"""Topics drawn from documents, the rules beside them, and what is no dataset of topics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from stages.agent.environment.collection import Collection
from stages.agent.report.records import holds_topics, read_exercises, read_topics, write_topics
from stages.agent.report.rl_stage import AgentReportLearn
from stages.agent.report.rules import Rules
from stages.agent.report.stage import AgentReport
from stages.agent.report.topics import Document, terms
from stages.agent.report.topics_stage import AgentReportTopics, TopicsParameters
from stages.agent.report.worlds import open_exercises, open_reports, open_tasks
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from tests.agent.library import BOOKS, SMALL, TOPIC, open_library, schooling
from tests.agent.world import make_index, run
from tests.tiny import tiny_model, tiny_text

Library = dict[str, Dataset]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    directory = tmp_path_factory.mktemp("library")
    found = open_library(directory)
    return {**found, **schooling(found, directory)}


def test_a_topic_names_documents_that_name_each_other(library: Library) -> None:
    collection = Collection(library["index"].path)
    topics = [topic for side in ("train", "heldout") for topic in read_topics(library[side])]
    assert len(topics) == 3
    for topic in topics:
        first, *others = topic.aspects
        assert topic.query == f"{first.title} and {others[0].title}"
        linked = [(first, other) for other in others]
        linked += [(aspect, item) for aspect in topic.aspects for item in topic.deeper(aspect.document)]
        for named, item in linked:
            document = collection.read(item.document)
            assert document is not None
            assert document.title == item.title
            assert named.title.lower() in document.text.lower()
        assert [item.weight for item in topic.items] == [2.0] * 2 + [1.0] * (len(topic.items) - 2)
        assert all(item.terms for item in topic.items)
    documents = [item.document for topic in topics for item in topic.items]
    assert len(set(documents)) == len(documents), "no document is in two topics"


def test_terms_are_what_the_title_does_not_say() -> None:
    document = Document(
        1, "Steam baking", "Steam darkens bread slowly. The chemist Louis Maillard described it in 1912."
    )
    assert terms(document) == ("louis maillard", "1912", "darkens")


def test_equal_seeds_draw_equal_topics(library: Library, tmp_path: Path) -> None:
    again = open_library(tmp_path)
    for side in ("train", "heldout"):
        assert (library[side].shards[0]).read_bytes() == again[side].shards[0].read_bytes()
        assert Rules.read(again[side]) == Rules.read(library[side])


def test_topics_of_documents_that_name_nothing_are_linked_by_search(tmp_path: Path) -> None:
    index = make_index(tmp_path, tiny_text(60))
    with pytest.raises(UserError, match="no topics for train: 0 found in all"):
        run(AgentReportTopics, {"index": index}, tmp_path / "none", aspects=2)
    context = run(AgentReportTopics, {"index": index}, tmp_path / "some", aspects=2, link="search", topics=4)
    assert context.results["train_topics"] + context.results["heldout_topics"] == 4


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_topics(tmp_path, [TOPIC], licence="CC0-1.0")
    dataset = Dataset(tmp_path)
    assert read_topics(dataset) == [TOPIC]
    assert (dataset.card.num_rows, dataset.card.licence) == (1, "CC0-1.0")
    rules = TopicsParameters(levels=2, most_words=99, draft_characters=0, documents=5).rules()
    rules.write(tmp_path)
    assert Rules.read(dataset) == rules


def test_topics_and_exercises_are_told_apart(library: Library) -> None:
    assert holds_topics(library["train"])
    assert not holds_topics(library["exercises"])
    index = library["index"]
    assert {task.kind for task in open_tasks(index, library["train"]).tasks} == {"report"}
    assert {task.kind for task in open_tasks(index, library["exercises"]).tasks} <= {
        "planning",
        "retrieval",
        "writing",
        "decision",
    }
    with pytest.raises(UserError, match="has exercises, no topics"):
        open_reports(index, library["exercises"])


def test_another_dataset_is_refused(library: Library) -> None:
    for read in (read_topics, read_exercises, holds_topics):
        with pytest.raises(UserError, match="has neither topics nor exercises of reports"):
            read(library["steps"])


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    write_topics(tmp_path, [])
    with pytest.raises(UserError, match="is empty"):
        read_topics(Dataset(tmp_path))


def test_a_damaged_row_is_refused(tmp_path: Path, library: Library) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(library["train"].shards[0])
    damaged = table.set_column(3, "report", pa.array(["{"] * len(table)))
    pq.write_table(damaged, tmp_path / "shard-00000.parquet")
    with pytest.raises(UserError, match=r"row report-[0-9a-f]+ is damaged"):
        read_topics(Dataset(tmp_path))


@pytest.mark.parametrize("content", [None, "{", '{"limits": {"levels": "many"}}'])
def test_rules_that_are_gone_or_damaged_are_refused(library: Library, tmp_path: Path, content: str | None) -> None:
    for file in library["train"].path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "rules.json").unlink()
    if content is not None:
        (tmp_path / "rules.json").write_text(content)
    topics, index = Dataset(tmp_path), library["index"]
    for opened in (open_reports, open_exercises, open_tasks):
        with pytest.raises(UserError, match=r"has no sound rules\.json"):
            opened(index, topics)
    model = Model(tiny_model(tmp_path / "model", max_positions=2048))
    with pytest.raises(UserError, match=r"has no sound rules\.json"):
        AgentReportLearn(AgentReportLearn.Params()).check({"model": model, "index": index, "tasks": topics})
    with pytest.raises(UserError, match=r"has no sound rules\.json"):
        AgentReport(AgentReport.Params()).check({"model": model, "index": index, "topics": topics})


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"aspects": 8}, {"fewest_sections": 4}, {"fewest_words": 401}, {"topics": 1}, {"levels": 0}):
        with pytest.raises(ValidationError):
            AgentReportTopics.Params(**wrong)


def test_the_report_shows_what_is_asked(tmp_path: Path) -> None:
    context = run(AgentReportTopics, {"index": make_index(tmp_path, BOOKS)}, tmp_path, **SMALL)
    assert context.results == {"train_topics": 2, "heldout_topics": 1, "documents": 5}
    samples = json.loads((tmp_path / "out/report/report.json").read_text())["details"]["samples"]
    assert {"question", "below", "checklist"} == set(samples[0])
    assert len(samples[0]["checklist"]) == 5
