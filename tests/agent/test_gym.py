"""`reasoning-gym` as an environment: made, proved without a model, scored in a process of its own, and learnt in."""

from __future__ import annotations

import json
import pickle
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.agent.conversation.messages import write_turn
from stages.agent.conversation.records import read_trajectories
from stages.agent.environment.episodes import Episode, Limits, play, prove, scripted
from stages.agent.environment.gym.environment import GymEnvironment
from stages.agent.environment.gym.process import Gym
from stages.agent.environment.opening import open_environment
from stages.agent.environment.toolbox import Toolbox
from stages.agent.evaluate.stage import AgentEvaluate
from stages.agent.questions.gym import AgentGymQuestions
from stages.agent.rl.stage import AgentLearn
from stages.artifacts import Dataset, Model
from stages.errors import StageError, UserError
from tests.agent.world import make_index, run
from tests.tiny import tiny_model

pytest.importorskip("reasoning_gym", reason="pip install 'regraft[gym]'")

TASKS = {"chain_sum": {"max_terms": 3, "max_digits": 2}, "countdown": {"min_numbers": 3, "max_numbers": 4}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gym")
    run(AgentGymQuestions, {}, directory, tasks=TASKS, per_task=10, heldout_fraction=0.3)
    return directory / "out"


@pytest.fixture(scope="module")
def environment(made: Path) -> GymEnvironment:
    found = open_environment(Dataset(made / "train"))
    assert isinstance(found, GymEnvironment)
    return found


def test_the_environment_proves_itself_on_what_was_written(made: Path, environment: GymEnvironment) -> None:
    for side in ("train", "heldout"):
        found = open_environment(Dataset(made / side))
        assert {task.kind for task in found.tasks} <= set(TASKS)
        assert prove(found, Toolbox(found.tools)) == []
    assert {task.kind for task in environment.tasks} == set(TASKS)


def test_a_wrong_answer_is_worth_nothing_and_another_right_one_all(environment: GymEnvironment) -> None:
    sums = next(task for task in environment.tasks if task.kind == "chain_sum")
    countdown = next(task for task in environment.tasks if task.kind == "countdown")
    assert environment.reward(sums, str(int(sums.answers[0]) + 1)) == 0
    assert environment.reward(countdown, f"({countdown.answers[0]})") == 1, "the scorer reads what it says"
    assert replace(environment, partial=True).reward(countdown, "1 + 1") == 0.05, "for trying"


def test_equal_seeds_make_equal_questions(made: Path, tmp_path: Path) -> None:
    run(AgentGymQuestions, {}, tmp_path, tasks=TASKS, per_task=10, heldout_fraction=0.3)
    for side in ("train", "heldout"):
        for file in (made / side).iterdir():
            assert (tmp_path / "out" / side / file.name).read_bytes() == file.read_bytes(), file.name
    run(AgentGymQuestions, {}, tmp_path / "other", seed=1, tasks=TASKS, per_task=10, heldout_fraction=0.3)
    assert open_environment(Dataset(tmp_path / "other/out/train")).tasks[0].question not in {
        task.question for task in open_environment(Dataset(made / "train")).tasks
    }


def test_what_cannot_be_relied_on_is_refused(tmp_path: Path) -> None:
    context = run(AgentGymQuestions, {}, tmp_path, tasks={"chain_sum": {}, "game_of_life_halting": {}}, per_task=6)
    assert context.results["questions_chain_sum"] == 6
    assert context.results["rejected_unproved"] > 0, "a scorer that takes any text for False pays for garbage"
    with pytest.raises(UserError, match="garbage gets"):
        run(AgentGymQuestions, {}, tmp_path / "partial", tasks={"countdown": {}}, per_task=4, partial=True)


@pytest.mark.parametrize(
    ("tasks", "problem"), [({"chian_sum": {}}, "not registered"), ({"maze": {"size_m": 1}}, "size_m")]
)
def test_a_generator_or_setting_that_there_is_not(tmp_path: Path, tasks: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        run(AgentGymQuestions, {}, tmp_path, tasks=tasks)
    assert "mend `tasks." in raised.value.fix


def test_an_answer_that_keeps_the_scorer_busy_is_worth_nothing_in_time(environment: GymEnvironment) -> None:
    countdown = next(task for task in environment.tasks if task.kind == "countdown")
    patient = pickle.loads(pickle.dumps(environment))
    assert patient.reward(countdown, countdown.answers[0]) == 1
    hasty = replace(environment, gym=Gym(seconds=1))
    assert hasty.reward(countdown, countdown.answers[0]) == 1
    assert hasty.gym._ask({"task": "countdown", "settings": {}, "index": 0})
    late = {"task": "countdown", "settings": dict(environment.settings["countdown"]), "answer": "9**9**9**9"}
    assert hasty.gym._ask({**late, "entry": json.loads(countdown.data)}) == {"problem": "no reply within 1 s"}
    assert hasty.reward(countdown, "9**9**9**9") == 0
    assert hasty.reward(countdown, countdown.answers[0]) == 1, "a new process answers"


def test_a_scorer_that_nobody_waits_for_ends(environment: GymEnvironment) -> None:
    countdown = next(task for task in environment.tasks if task.kind == "countdown")
    asked = {"task": "countdown", "settings": dict(environment.settings["countdown"]), "answer": "9**9**9**9"}
    gym = Gym(seconds=1)
    assert gym.score("countdown", asked["settings"], json.loads(countdown.data), countdown.answers[0]) == 1
    process = gym._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.write(json.dumps({**asked, "entry": json.loads(countdown.data)}) + "\n")
    process.stdin.flush()
    assert process.wait(60) == -signal.SIGALRM
    gym.close()


def test_a_library_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('no memory for tables')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StageError, match="the process ended with 1: no memory for tables"):
        Gym().make("chain_sum", {}, 0)


def test_an_answer_is_scored_once(environment: GymEnvironment) -> None:
    class Counting(Gym):
        scored = 0

        def score(self, *asked: Any) -> float:
            self.scored += 1
            return super().score(*asked)

    counted = replace(environment, gym=Counting())
    (task,) = counted.tasks[:1]
    episode = Episode(counted, task, Limits(1))
    (played,) = play([episode], scripted([write_turn("", task.answers[0])]), Toolbox({}))
    assert counted.success(task, task.answers[0], played.reward)
    assert not counted.success(task, "no", 0.05)
    assert counted.gym.scored == 1


def test_an_agent_is_evaluated_and_trained_without_an_index(made: Path, tmp_path: Path) -> None:
    inputs = {"model": Model(tiny_model(tmp_path / "model", max_positions=512)), "questions": Dataset(made / "train")}
    room = {"turn_tokens": 6, "window": 480}
    context = run(AgentEvaluate, inputs, tmp_path / "evaluate", questions=2, turns=1, dtype="float32", **room)
    assert context.results["calls"] == context.results["success"] == 0
    with pytest.raises(UserError, match="reasoning_gym, which searches no index"):
        run(AgentEvaluate, {**inputs, "index": make_index(tmp_path / "index")}, tmp_path / "both")
    learn = {"steps": 1, "questions": 2, "rollouts": 2, "turns": 1, "credit": "grpo", "kl_weight": 0, **room}
    run(AgentLearn, inputs, tmp_path / "learn", precision="fp32", **learn)
    found = read_trajectories(Dataset(tmp_path / "learn/out/rollouts"))
    assert len(found) == 4
    assert {one.kind for one in found} <= set(TASKS)
    gains = run(AgentLearn, inputs, tmp_path / "gains", precision="fp32", **{**learn, "credit": "igpo"})
    said = [event.get("text", "") for event in gains.events]  # type: ignore[attr-defined]
    assert any("credit: igpo counts what tools reveal" in text for text in said)
    with pytest.raises(UserError, match="gain_tools: 'visit', which is no tool of the environment"):
        run(AgentLearn, inputs, tmp_path / "tools", **{**learn, "credit": "igpo", "gain_tools": ("visit",)})


def test_the_first_tasks_are_a_sample_of_all(environment: GymEnvironment) -> None:
    kinds = [task.kind for task in environment.tasks]
    assert sorted(kinds) != kinds != sorted(kinds, reverse=True)
