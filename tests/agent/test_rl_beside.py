"""Rollouts one set ahead of training: by which policy, in which process, and across an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from grafts.loader import load_model
from stages.agent.environment.opening import open_environment
from stages.agent.rl.batch import Tokens
from stages.agent.rl.beside import IN_TURN, writer_beside
from stages.agent.rl.experience import Diary
from stages.agent.rl.log_probs import policy_log_probs
from stages.agent.rl.recipe import AgentLearning
from stages.agent.rl.settings import LearningParameters
from stages.agent.rl.stage import AgentLearn
from stages.artifacts import Model
from stages.errors import StageError, StoppedError, UserError
from stages.stage import Context, Resources
from tests.agent.schooled import school, world
from tests.machine import one_thread as one_thread
from tests.machine import ray_cluster as ray_cluster

SETTINGS: dict[str, Any] = {
    "questions": 2,
    "rollouts": 4,
    "turns": 3,
    "turn_tokens": 64,
    "window": 512,
    "precision": "fp32",
    "answer_thought": "",
    "learning_rate": 1e-3,
}
NO_ROOM = 10_000.0
"""CPUs that no machine here has: the worker writes the sets itself."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("school")
    index, questions = world(directory)
    return {"model": Model(school(directory, index, questions)), "index": index, "questions": questions}


def learn(
    inputs: dict[str, Any],
    directory: Path,
    stopping: Callable[[], bool] = lambda: False,
    cpus: float = NO_ROOM,
    **params: Any,
) -> list[dict[str, Any]]:
    """Run the stage in `directory`; the events."""
    events: list[dict[str, Any]] = []
    (directory / "scratch").mkdir(parents=True, exist_ok=True)
    places = directory / "out", directory / "scratch"
    resources = Resources(cpus=cpus)
    context = Context(inputs, *places, seed=1, emit=events.append, stopping=stopping, resources=resources)
    AgentLearn(AgentLearn.Params(**{**SETTINGS, **params})).run(context)
    return events


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_model(directory / "out/model", dtype=torch.float32).state_dict()


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended in the same weights, rollouts and report, bit by bit."""
    files = ("rollouts/shard-00000.parquet", "report/report.json")
    told = all((one / "out" / file).read_bytes() == (other / "out" / file).read_bytes() for file in files)
    expected = weights(other)
    return told and all(torch.equal(value, expected[name]) for name, value in weights(one).items())


def distance(run: Path, number: int, model: Path) -> float:
    """How far the log-probabilities that set `number` was written with are from those of `model`, nats, the largest."""
    found = Diary(run / "scratch/rollouts").read(number)
    assert found is not None
    tokens = Tokens.of(found, LearningParameters(**SETTINGS))
    with torch.no_grad():
        logp, _ = policy_log_probs(load_model(model, dtype=torch.float32).eval(), tokens.ids, tokens.sampled)
    return (logp - tokens.old).abs().max().item()


@pytest.fixture(scope="module")
def behind(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets, each but the first written by the policy of the last one, in turn with the updates."""
    directory = tmp_path_factory.mktemp("behind")
    events = learn(inputs, directory, steps=3, staleness=1)
    assert any("take turns" in event.get("text", "") for event in events), "it says that there was no room"
    return directory


def test_a_set_is_written_by_the_policy_of_the_last_one(inputs: dict[str, Any], behind: Path, tmp_path: Path) -> None:
    for steps in (1, 2):
        learn(inputs, tmp_path / str(steps), steps=steps, staleness=1)
    first, second, third = inputs["model"].path, tmp_path / "1/out/model", tmp_path / "2/out/model"
    assert max(distance(behind, 0, first), distance(behind, 1, first), distance(behind, 2, second)) < 1e-4
    assert min(distance(behind, 1, second), distance(behind, 2, first), distance(behind, 2, third)) > 1e-3


def test_without_staleness_a_set_is_written_by_the_policy_that_learns(inputs: dict[str, Any], tmp_path: Path) -> None:
    learn(inputs, tmp_path / "one", steps=1)
    learn(inputs, tmp_path / "two", steps=2)
    learn(inputs, tmp_path / "behind", steps=1, staleness=1)
    assert distance(tmp_path / "two", 0, inputs["model"].path) < 1e-4
    assert distance(tmp_path / "two", 1, tmp_path / "one/out/model") < 1e-4
    assert all(torch.equal(x, weights(tmp_path / "behind")[name]) for name, x in weights(tmp_path / "one").items())


def test_another_process_writes_the_same_sets(
    inputs: dict[str, Any], behind: Path, tmp_path: Path, ray_cluster: None
) -> None:
    events = learn(inputs, tmp_path, cpus=0.5, steps=3, staleness=1)
    assert same(tmp_path, behind)
    curves = [event["values"] for event in events if "seconds_rollouts" in event.get("values", {})]
    assert len(curves) == 3
    assert all(values["seconds_waiting"] >= 0 for values in curves)
    assert not any("take turns" in event.get("text", "") for event in events)


def test_an_interruption_changes_nothing(inputs: dict[str, Any], tmp_path: Path, ray_cluster: None) -> None:
    """Stopped in the middle of a set, whose successor was begun with weights that no checkpoint holds."""
    for cpus in (NO_ROOM, 0.5):
        asked: list[bool] = []

        def at_the_third_update(asked: list[bool] = asked) -> bool:
            asked.append(True)
            return len(asked) == 3

        run = {"steps": 6, "updates": 2, "staleness": 1, "cpus": cpus}
        with pytest.raises(StoppedError):
            learn(inputs, tmp_path / str(cpus), at_the_third_update, **run)
        assert [Diary(tmp_path / str(cpus) / "scratch/rollouts").holds(number) for number in range(3)] == [True] * 3
        events = learn(inputs, tmp_path / str(cpus), **run)
        assert "resuming after step 3 of 6" in [event.get("text") for event in events]
    learn(inputs, tmp_path / "whole", steps=6, updates=2, staleness=1)
    assert same(tmp_path / str(NO_ROOM), tmp_path / "whole")
    assert same(tmp_path / "0.5", tmp_path / "whole")


def test_what_is_wrong_in_the_other_process_is_told(inputs: dict[str, Any], tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(UserError, match="0 of 2 questions leave room"):
        learn(inputs, tmp_path, cpus=0.5, steps=2, staleness=1, window=70)


def test_several_workers_take_turns_and_are_told_why(tmp_path: Path) -> None:
    said: list[str] = []
    context = Context(
        {}, tmp_path / "out", tmp_path / "scratch", resources=Resources(workers=2, cpus=0.1),
        emit=lambda event: said.append(event["text"]),
    )  # fmt: skip
    recipe = AgentLearning(*(None,) * 4, params=LearningParameters(staleness=1), seed=1, scratch=tmp_path, out=tmp_path)  # type: ignore[arg-type]
    with writer_beside(recipe, context) as writer:
        assert writer is None
    assert said == [IN_TURN.format(why="beside each other they need workers: 1, here are 2")]


class GoneOnArrival:
    """Ends the process that it is sent to."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


class GoneOnOpening:
    """Ends the process in which it opens."""

    def __call__(self) -> Any:
        os._exit(1)


@pytest.mark.parametrize(
    ("environment", "problem"), [(GoneOnArrival(), "died as it started"), (GoneOnOpening(), "writes rollouts is lost")]
)
def test_a_process_that_dies_before_it_writes_is_told(
    inputs: dict[str, Any], tmp_path: Path, ray_cluster: None, environment: Any, problem: str
) -> None:
    context = Context(inputs, tmp_path / "out", tmp_path / "scratch", resources=Resources(cpus=0.5))
    params = LearningParameters(**{**SETTINGS, "staleness": 1})
    model = inputs["model"]
    recipe = AgentLearning(model, model, environment, None, params, 1, context.scratch, context.out)
    with pytest.raises(StageError, match=problem), writer_beside(recipe, context):
        pass


def test_a_lost_process_is_told(inputs: dict[str, Any], tmp_path: Path, ray_cluster: None) -> None:
    context = Context(inputs, tmp_path / "out", tmp_path / "scratch", resources=Resources(cpus=0.5))
    recipe = AgentLearning(
        model=inputs["model"],
        reference=inputs["model"],
        environment=partial(open_environment, inputs["questions"], inputs["index"]),
        heldout=None,
        params=LearningParameters(**{**SETTINGS, "staleness": 1}),
        seed=1,
        scratch=context.scratch,
        out=context.out,
    )
    policy = load_model(inputs["model"].path, dtype=torch.float32)
    with writer_beside(recipe, context) as writer:
        assert writer is not None
        writer.start(policy, 0)
        assert len(writer.take().experiences) == 8
        writer.start(policy, 1)
        writer.close()
        with pytest.raises(StageError, match="writes rollouts is lost"):
            writer.take()
