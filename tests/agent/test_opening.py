"""Questions say which environment they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.agent.conversation.records import read_tasks, write_tasks
from stages.agent.environment.base import Task
from stages.agent.environment.opening import FILE, declare, declared, open_environment
from stages.agent.environment.research import ResearchEnvironment
from stages.artifacts import Dataset
from stages.errors import UserError
from tests.agent.world import make_index


@pytest.fixture
def questions(tmp_path: Path) -> Dataset:
    (tmp_path / "questions").mkdir()
    write_tasks(tmp_path / "questions", [Task("1", "Who?", ("Anna",))])
    return Dataset(tmp_path / "questions")


def test_questions_that_say_nothing_are_researched(questions: Dataset, tmp_path: Path) -> None:
    index = make_index(tmp_path)
    assert isinstance(open_environment(questions, index), ResearchEnvironment)
    with pytest.raises(UserError, match="none is given"):
        open_environment(questions)


def test_what_another_environment_says_is_kept(questions: Dataset, tmp_path: Path) -> None:
    declare(questions.path, "chess", pieces={"kings": 2})
    assert declared(questions) == ("chess", {"pieces": {"kings": 2}})
    with pytest.raises(UserError, match="no environment 'chess'"):
        open_environment(questions)
    with pytest.raises(UserError, match="questions are of chess, which searches no index"):
        open_environment(questions, make_index(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"environment": "chess"}'])
def test_a_damaged_declaration_is_told(questions: Dataset, content: str) -> None:
    (questions.path / FILE).write_text(content)
    with pytest.raises(UserError, match=r"environment\.json is damaged"):
        declared(questions)


def test_what_the_environment_alone_knows_is_kept_with_a_task(tmp_path: Path) -> None:
    tasks = [Task("1", "Who?", ("Anna",), data='{"of": 1}'), Task("2", "Where?", ("Leeds",))]
    write_tasks(tmp_path, tasks)
    assert read_tasks(Dataset(tmp_path)) == tasks
