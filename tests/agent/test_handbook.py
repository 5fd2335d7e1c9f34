"""`agent.handbook` and `agent.guide`: what is kept of what a model says, and what a student gets to see."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from stages.agent.conversation.records import read_trajectories, write_trajectories
from stages.agent.conversation.rendering import Renderer
from stages.agent.environment.research import open_environment
from stages.agent.handbook.entries import Behaviour, Handbook
from stages.agent.handbook.guide import AgentGuide
from stages.agent.handbook.guided import Guided
from stages.agent.handbook.records import read_handbook, write_handbook
from stages.agent.handbook.stage import AgentHandbook
from stages.agent.handbook.writing import NAME_THEM, Room, reflect
from stages.agent.rollout.engine import Engine, Request, Sampling, Written
from stages.agent.rollout.transformers_engine import TransformersEngine
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from tests.agent.lively import lively
from tests.agent.schooled import world
from tests.agent.world import run, talk
from tests.machine import one_thread as one_thread
from tests.tiny import tiny_model

READ = Behaviour("behavior_read_first", "Read the document before you answer.")
LISTS = (
    "behavior_read_first: Read the document before you answer.\nbehavior_leak: The answer is ok.\nnothing",
    "behavior_again: Before you answer, read the document.\nbehavior_dates: Give dates in full.",
)


class Says(Engine):
    """Writes the same reflection always, and its lists one after another."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer, self.lists, self.read = renderer, list(LISTS), list[str]()

    def write(self, requests: Sequence[Request]) -> list[Written]:
        self.read += [self.renderer.decode(request.ids) for request in requests]
        texts = [self.lists.pop(0) if NAME_THEM[:30] in text else "I was slow." for text in self.read[-len(requests) :]]
        return [Written(ids, [0.0] * len(ids), False) for ids in map(self.renderer.encode_text, texts)]

    def forget(self) -> None:
        """Nothing is remembered."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "model", max_positions=2048)


def test_what_a_model_says_is_checked_before_it_is_kept(directory: Path) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(directory))
    engine, work = Says(renderer), talk(("assistant", "word " * 2000))
    found = reflect(engine, renderer, [work, work], Room(100, 1500), threshold=0.7, seed=0, batch=1)
    assert [entry.name for entry in found.handbook.entries] == ["behavior_read_first", "behavior_dates"]
    assert {reason: [entry.name for entry in entries] for reason, entries in found.rejected.items()} == {
        "answer": ["behavior_leak"],
        "duplicate": ["behavior_again"],
    }
    assert "I was slow." in engine.read[1]
    contexts = [len(renderer.encode_text(text)) for text in engine.read]
    assert found.tokens_written == 2 * len(renderer.encode_text("I was slow.")) + sum(
        len(renderer.encode_text(text)) for text in LISTS
    )
    assert found.tokens_read > 4 * 500
    assert max(contexts) < 2500  # markers of the template are spelt out here, the work was cut


def test_what_others_worked_on_is_not_given_away_either(directory: Path, tmp_path: Path) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(directory))
    asked = "Which words does the quiet keeper of Silver Harbour write on slips?"
    foreign = replace(talk(("assistant", "x"), question=asked), question="", answers=())
    engine = Says(renderer)
    engine.lists = ["behavior_copy: Ask which words does the quiet keeper of Silver Harbour write."]
    found = reflect(engine, renderer, [foreign], Room(100, 1500), threshold=0.7, seed=0, batch=1)
    assert list(found.rejected) == ["copy"]
    write_trajectories(_made(tmp_path / "work"), [foreign, talk(("assistant", "x"))])
    inputs = {"model": Model(directory), "trajectories": Dataset(tmp_path / "work")}
    said = run(AgentHandbook, inputs, tmp_path, tokens=8, dtype="float32").events  # type: ignore[attr-defined]
    assert any("1 of 2 trajectories have no answers" in event.get("text", "") for event in said)


class Recorded(TransformersEngine):
    """Remembers what it wrote."""

    def write(self, requests: Sequence[Request]) -> list[Written]:
        found = super().write(requests)
        self.texts = [*getattr(self, "texts", []), *(tuple(each.ids) for each in found)]
        return found


def test_how_many_are_reflected_on_side_by_side_decides_nothing(directory: Path) -> None:
    renderer, model = Renderer(AutoTokenizer.from_pretrained(directory)), lively(directory)
    work, written = [talk(("assistant", "x"), task=task) for task in "abc"], []
    for batch in (1, 2, 3):
        engine = Recorded(model, renderer.stop_id, Sampling())
        reflect(engine, renderer, work, Room(8, 1500), threshold=0.7, seed=0, batch=batch)
        written.append(sorted(engine.texts))
    assert written[0] == written[1] == written[2]
    assert len(set(written[0])) == 6, "equal work is reflected on differently"


def test_a_window_without_room_for_the_work_is_refused(directory: Path, tmp_path: Path) -> None:
    write_trajectories(_made(tmp_path / "work"), [talk(("assistant", "x"))])
    inputs = {"model": Model(directory), "trajectories": Dataset(tmp_path / "work")}
    with pytest.raises(UserError, match="window: 512 is filled by two answers of 256 tokens"):
        run(AgentHandbook, inputs, tmp_path / "filled", window=512, tokens=256)
    with pytest.raises(UserError, match=r"window: 512 leaves -?\d+ tokens for the work .* expected 64") as raised:
        run(AgentHandbook, inputs, tmp_path / "nearly", window=512, tokens=250, dtype="float32")
    window = int(raised.value.fix.split()[3])
    run(AgentHandbook, inputs, tmp_path / "enough", window=window, tokens=250, dtype="float32")


def test_a_model_without_a_tokenizer_is_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        AgentHandbook(AgentHandbook.Params()).check({"model": Model(tmp_path / "model")})


def test_a_handbook_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_handbook(tmp_path, Handbook((READ,)))
    assert read_handbook(Dataset(tmp_path)).entries == (READ,)
    index, _ = world(_made(tmp_path / "world"))
    with pytest.raises(UserError, match="no handbook"):
        read_handbook(index)


def test_a_student_never_sees_the_behaviours(tmp_path: Path) -> None:
    environment = open_environment(*world(_made(tmp_path / "world")))
    task = environment.tasks[0]
    assert Guided(environment, Handbook(), 4).prompt(task) == environment.prompt(task)
    guided = Guided(environment, Handbook((READ,)), 4)
    assert READ.text in guided.prompt(task)[0].content
    said = talk(("assistant", "x"), task=task.id)
    shown = guided.unguided(said, task)
    assert shown.messages == (*environment.prompt(task), said.messages[-1])


def test_the_stages_run_one_after_another(directory: Path, tmp_path: Path) -> None:
    index, questions = world(_made(tmp_path / "world"))
    write_trajectories(_made(tmp_path / "work"), [talk(("assistant", "x"))] * 3)
    inputs = {"model": Model(directory), "trajectories": Dataset(tmp_path / "work")}
    made = run(AgentHandbook, inputs, tmp_path / "book", tokens=8, trajectories=2, dtype="float32")
    assert made.results["proposed"] == made.results["behaviours"] == 0
    assert 0 < made.results["tokens_written"] <= 2 * 2 * 8
    write_handbook(_made(tmp_path / "handbook"), Handbook((READ,)))
    inputs = {"model": Model(directory), "index": index, "questions": questions}
    inputs |= {"handbook": Dataset(tmp_path / "handbook")}
    guided = run(AgentGuide, inputs, tmp_path / "guide", turns=2, turn_tokens=8, dtype="float32")
    assert guided.results["total_tokens"] > guided.results["plain_total_tokens"]
    assert guided.results["tokens"] <= 16
    for found in read_trajectories(Dataset(tmp_path / "guide/out/trajectories")):
        assert not any("behavior_" in message.content for message in found.messages)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory
