"""`agent.rl` as a stage: a schooled pupil learns, an interrupted run goes on exactly, batches decide nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from grafts.loader import load_model
from stages.agent.conversation.messages import ToolCall, write_turn
from stages.agent.conversation.records import read_tasks, read_trajectories, write_tasks
from stages.agent.conversation.rendering import load_renderer
from stages.agent.environment.base import Task
from stages.agent.environment.episodes import Episode, Limits, play, scripted
from stages.agent.environment.research import open_environment
from stages.agent.environment.toolbox import Toolbox
from stages.agent.rl.recipe import AgentLearning
from stages.agent.rl.scoring import Answer, score
from stages.agent.rl.settings import LearningParameters
from stages.agent.rl.stage import AgentLearn
from stages.agent.rollout.engine import Sampling
from stages.agent.rollout.rollouts import Room, roll_out
from stages.agent.rollout.transformers_engine import TransformersEngine
from stages.artifacts import Dataset, Model
from stages.data.windows import POSITIONS
from stages.errors import StoppedError, UserError
from stages.stage import Context, Resources
from stages.training.order import global_batch
from stages.training.recipe import Worker
from tests.agent.schooled import school, world
from tests.machine import one_thread as one_thread
from tests.machine import ray_cluster as ray_cluster
from tests.tiny import tokens_dataset

ROOM = {"turns": 3, "turn_tokens": 64, "window": 512}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("school")
    index, questions = world(directory)
    return {"model": Model(school(directory, index, questions)), "index": index, "questions": questions}


class Learnt:
    """What a run of the stage left."""

    def __init__(
        self, inputs: dict[str, Any], directory: Path, stopping: Callable[[], bool], workers: int = 1, **params: Any
    ) -> None:
        settings = {"steps": 2, "questions": 2, "rollouts": 4, "precision": "fp32", "answer_thought": "", **ROOM}
        stage = AgentLearn(AgentLearn.Params(**{**settings, "learning_rate": 1e-3, **params}))
        stage.preflight()
        stage.check(inputs)
        self.events: list[dict[str, Any]] = []
        (directory / "scratch").mkdir(parents=True, exist_ok=True)
        self.context = Context(
            inputs,
            directory / "out",
            directory / "scratch",
            seed=1,
            emit=self.events.append,
            stopping=stopping,
            resources=Resources(workers=workers, cpus=0.5),
        )
        stage.run(self.context)

    def curve(self, name: str) -> list[float]:
        return [event["values"][name] for event in self.events if name in event.get("values", {})]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_model(self.context.out / "model", dtype=torch.float32).state_dict()


def learn(
    inputs: dict[str, Any], directory: Path, stopping: Callable[[], bool] = lambda: False, **params: Any
) -> Learnt:
    return Learnt(inputs, directory, stopping, **params)


def test_a_policy_learns_to_look_where_guessing_is_half_right(inputs: dict[str, Any], tmp_path: Path) -> None:
    run = learn(inputs, tmp_path, steps=8, rollouts=16, learning_rate=1e-3, micro_batch=16)
    calls, rewards, results = run.curve("calls"), run.curve("reward"), run.context.results
    assert sum(calls[-3:]) / 3 > sum(calls[:2]) / 2 + 0.15
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.05
    rollouts = read_trajectories(Dataset(run.context.out / "rollouts"))
    assert len(rollouts) == 8 * 32
    assert sum(found.reward for found in rollouts[-32:]) / 32 == pytest.approx(results["reward"])
    assert {"rollouts"} == {event["unit"] for event in run.events if event["event"] == "progress"}
    assert len(run.curve("kl")) == len(run.curve("seconds_scoring")) == 8
    assert run.curve("kl")[0] == pytest.approx(0, abs=1e-6)
    assert run.curve("kl")[-1] > 1e-5


def test_an_interrupted_run_goes_on_exactly(inputs: dict[str, Any], tmp_path: Path) -> None:
    whole = learn(inputs, tmp_path / "whole", steps=4, updates=2)
    asked: list[bool] = []

    def at_the_second_step() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(StoppedError):
        learn(inputs, tmp_path / "again", at_the_second_step, steps=4, updates=2)
    again = learn(inputs, tmp_path / "again", steps=4, updates=2)
    assert "resuming after step 3 of 4" in [event.get("text") for event in again.events]
    for name, expected in whole.weights.items():
        assert torch.equal(again.weights[name], expected), name
    files = ("rollouts/shard-00000.parquet", "report/report.json")
    for file in files:
        assert (again.context.out / file).read_bytes() == (whole.context.out / file).read_bytes()


def test_batches_and_workers_memory_decide_nothing(inputs: dict[str, Any], tmp_path: Path) -> None:
    whole = learn(inputs, tmp_path / "a", steps=1, micro_batch=8, rollout_batch=8)
    parts = learn(inputs, tmp_path / "b", steps=1, micro_batch=1, rollout_batch=3, activation_checkpointing=True)
    texts = [read_trajectories(Dataset(run.context.out / "rollouts")) for run in (whole, parts)]
    assert texts[0] == texts[1]
    assert whole.curve("policy_loss") == pytest.approx(parts.curve("policy_loss"), abs=1e-5)
    before = load_model(inputs["model"].path, dtype=torch.float32).state_dict()
    for name, expected in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], expected, atol=2e-4, rtol=0)
    assert any(not torch.equal(before[name], value) for name, value in whole.weights.items())


@pytest.mark.cluster
def test_two_workers_learn_what_one_does(inputs: dict[str, Any], tmp_path: Path, ray_cluster: None) -> None:
    one, two = (learn(inputs, tmp_path / str(n), workers=n, steps=2, zero_stage=n - 1) for n in (1, 2))
    texts = [read_trajectories(Dataset(run.context.out / "rollouts")) for run in (one, two)]
    assert texts[0][:8] == texts[1][:8]
    assert one.curve("policy_loss")[0] == pytest.approx(two.curve("policy_loss")[0], abs=1e-5)
    assert len(two.curve("reward")) == 2


def test_grpo_scores_nothing_and_needs_no_reference_without_kl(inputs: dict[str, Any], tmp_path: Path) -> None:
    run = learn(inputs, tmp_path, steps=1, credit="grpo", kl_weight=0)
    assert not run.curve("seconds_scoring")
    assert not run.curve("seconds_reference")
    assert not run.curve("gain")
    assert run.curve("seconds_rollouts")


def test_without_a_weight_there_is_no_curve_of_the_kl(inputs: dict[str, Any], tmp_path: Path) -> None:
    run = learn(inputs, tmp_path, steps=1, credit="grpo", kl_weight=0)
    assert not run.curve("kl")
    assert run.curve("policy_loss")


def test_a_question_asked_twice_in_a_set_is_answered_in_two_ways(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Two of three questions a set: some sets span epochs, and begin one with what ended the other."""
    (tmp_path / "questions").mkdir()
    room, other = read_tasks(inputs["questions"])
    write_tasks(tmp_path / "questions", [room, other, replace(room, id="3")])
    environment = partial(open_environment, inputs["index"], Dataset(tmp_path / "questions"))
    params = LearningParameters(questions=2, rollouts=8, credit="grpo", kl_weight=0, **ROOM)
    recipe = AgentLearning(
        inputs["model"], inputs["model"], environment, None, params, 1, tmp_path / "scratch", tmp_path / "out"
    )
    worker = Worker(0, 1, torch.device("cpu"), torch.float32)
    number = next(number for number in range(99) if len(set(global_batch(number, 2, 3, seed=1))) == 1)
    found = recipe.collector(worker).collect(recipe.policy(worker), number)
    assert len({one.rollout.trajectory.task for one in found}) == 1
    first, second = ([one.rollout.logp for one in found if one.group == group] for group in (0, 1))
    assert len(first) == len(second) == 8
    assert first != second


def test_held_out_text_is_read_before_learning_begins(inputs: dict[str, Any], tmp_path: Path) -> None:
    text = tokens_dataset(tmp_path / "text", inputs["model"].path, num_windows=4, sequence_length=32)
    run = learn({**inputs, "heldout": text}, tmp_path / "plain", steps=1, credit="grpo", kl_weight=0)
    assert run.context.results["kl_to_parent"] >= 0
    (shard,) = text.shards
    rows = pq.read_table(shard)
    pq.write_table(rows.append_column(POSITIONS, rows["input_ids"]), shard)
    with pytest.raises(UserError, match="models are measured on whole windows"):
        learn({**inputs, "heldout": Dataset(text.path)}, tmp_path / "apart", steps=1)
    assert not (tmp_path / "apart/scratch/rollouts").exists(), "nothing was written before"


def test_what_a_tool_reveals_is_information_gain(inputs: dict[str, Any]) -> None:
    """The score of the true answer rises at the visit of the right room, and not at that of one with another word."""
    environment = open_environment(inputs["index"], inputs["questions"])
    renderer, model = load_renderer(inputs["model"]), load_model(inputs["model"].path, dtype=torch.float32)
    gains = {True: [], False: []}
    with Toolbox(environment.tools) as tools:
        for task in environment.tasks:
            for other in (0, 1):
                room = (int(task.id) - 1 + other) % len(environment.tasks) + 1
                visit = write_turn("", ToolCall("visit", {"id": str(room)}))
                (played,) = play([Episode(environment, task, Limits(2))], scripted([visit, write_turn("", "x")]), tools)
                encoded = renderer.encode(played.messages)
                starts = [span.first for span in encoded.spans if span.role == "assistant"]
                before, after = score(model, encoded.ids, starts, Answer.of(renderer, task.answers[0], "")).tolist()
                gains[other == 0].append(after - before)
    assert min(gains[True]) > 0.3
    assert max(gains[False]) < min(gains[True])


def test_rollouts_are_the_tokens_that_were_sampled(inputs: dict[str, Any]) -> None:
    environment = open_environment(inputs["index"], inputs["questions"])
    renderer, model = load_renderer(inputs["model"]), load_model(inputs["model"].path, dtype=torch.float32)
    engine = TransformersEngine(model, renderer.stop_id, Sampling())
    with Toolbox(environment.tools) as tools:
        found = roll_out(engine, environment, tools, renderer, [*environment.tasks] * 4, range(8), Room(3, 24, 400))
    assert {rollout.num_turns for rollout in found} >= {1, 3}
    for rollout in found:
        said = [message.content for message in rollout.trajectory.messages if message.role == "assistant"]
        for turn, (start, content) in enumerate(zip(rollout.starts, said, strict=True)):
            own = [token for token, of in zip(rollout.ids, rollout.turn_of, strict=True) if of == turn]
            assert rollout.turn_of[start - 1] == -1
            assert renderer.decode(own).removesuffix(renderer.decode([renderer.stop_id])) == content
            assert len(own) <= 24
        assert all((logp < 0) <= (of >= 0) for logp, of in zip(rollout.logp, rollout.turn_of, strict=True))
        assert len(rollout.ids) == len(rollout.turn_of) == len(rollout.logp)


def test_a_window_too_small_for_the_questions_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 of 2 questions leave room"):
        learn(inputs, tmp_path, window=70)


def test_a_window_beyond_the_model_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exceeds the model's context of 768"):
        learn(inputs, tmp_path, window=1024)


def test_a_model_without_a_tokenizer_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(inputs["model"].path, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        learn({**inputs, "model": Model(tmp_path / "model")}, tmp_path)


def test_tools_of_a_gain_that_there_are_not_are_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'vist', which is no tool of the environment; did you mean 'visit'") as raised:
        learn(inputs, tmp_path, gain_tools=("search", "vist"))
    assert "search, visit" in raised.value.fix


@pytest.mark.parametrize(("answer", "problem"), [(" ", "is empty"), ("<answer>x", "cannot be scored")])
def test_an_answer_that_nobody_can_give_is_refused(
    inputs: dict[str, Any], tmp_path: Path, answer: str, problem: str
) -> None:
    (tmp_path / "questions").mkdir()
    write_tasks(tmp_path / "questions", [Task("7", "room 1", (answer,))])
    with pytest.raises(UserError, match=f"question 7 {problem}"):
        learn({**inputs, "questions": Dataset(tmp_path / "questions")}, tmp_path)


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"answer_thought": "a </think>"}, {"turn_tokens": 1024}, {"zero_stage": 3}, {"rollouts": 1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            AgentLearn.Params(**wrong)
