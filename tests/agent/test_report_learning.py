"""From documents to a writer of reports: topics, an expert, fine-tuning, reinforcement, and reports measured.

The pupil is tiny, learns the expert's steps by heart, and then writes reports as good as the expert's.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from grafts import apply
from grafts.hybrid.graft import HybridHeads
from grafts.loader import load_model, save_model
from stages.agent.conversation.records import read_trajectories
from stages.agent.conversation.rendering import Renderer, load_renderer
from stages.agent.environment.toolbox import Toolbox
from stages.agent.report.actions import NAMES
from stages.agent.report.expert_stage import AgentReportExpert
from stages.agent.report.rl_stage import AgentReportLearn, ReportLearningParameters
from stages.agent.report.stage import AgentReport
from stages.agent.report.worlds import open_reports
from stages.agent.rl.batch import Tokens, padded, positions_of, turn_advantages
from stages.agent.rl.experience import Diary, Experience
from stages.agent.rl.log_probs import policy_log_probs
from stages.agent.rollout.engine import Sampling
from stages.agent.rollout.rollouts import Rollout, Room, roll_out
from stages.agent.rollout.transformers_engine import TransformersEngine
from stages.agent.sft.stage import AgentSft
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.stage import Context, Resources
from tests.agent.library import at_work, open_library, schooling
from tests.agent.schooled import newborn, tokenizer_of
from tests.agent.world import run
from tests.machine import one_thread as one_thread
from tests.machine import ray_cluster as ray_cluster

ROOM = {"turn_tokens": 96, "window": 480}
SKILLS = {"planning", "retrieval", "writing", "decision"}
HEAT = 0.8
"""Temperature at which the pupil errs now and then."""
LEARN: dict[str, Any] = {**ROOM, "steps": 2, "questions": 2, "rollouts": 4, "precision": "fp32", "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Index, topics, steps, exercises, and the pupil."""
    directory = tmp_path_factory.mktemp("school")
    library = open_library(directory)
    found = {**library, **schooling(library, directory, exercise_share=1e-9, balance=99)}
    tokenizer = tokenizer_of([one.messages for one in read_trajectories(found["steps"])])
    tokenizer.save_pretrained(directory / "newborn")
    save_model(newborn(len(tokenizer)), directory / "newborn", tokenizer_from=None)
    lessons = {"epochs": 50, "window": 512, "learning_rate": 5e-3, "batch_sequences": 2, "precision": "fp32"}
    born = {"model": Model(directory / "newborn"), "trajectories": found["steps"]}
    run(AgentSft, born, directory / "sft", **lessons)
    return {**found, "model": Model(directory / "sft/out/model")}


def report(inputs: dict[str, Any], directory: Path, asked: str = "train", **params: Any) -> Context:
    given = {"model": inputs["model"], "index": inputs["index"], "topics": inputs[asked]}
    return run(AgentReport, given, directory, **{**ROOM, "dtype": "float32", **params})


def learn(inputs: dict[str, Any], directory: Path, tasks: Dataset, **params: Any) -> Context:
    given = {"model": inputs["model"], "index": inputs["index"], "tasks": tasks}
    return run(AgentReportLearn, given, directory, seed=1, **{**LEARN, **params})


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_model(directory, dtype=torch.float32).state_dict()


def curve(context: Context, name: str) -> list[float]:
    events: list[dict[str, Any]] = context.events  # type: ignore[attr-defined]
    return [event["values"][name] for event in events if name in event.get("values", {})]


def test_a_pupil_writes_the_reports_of_its_teacher(inputs: dict[str, Any], tmp_path: Path) -> None:
    context = report(inputs, tmp_path)
    results, (_, works) = context.results, at_work(inputs)
    assert results["score"] == pytest.approx(sum(one.score for one in works) / len(works))
    assert (results["finished"], results["refused"], results["malformed"], results["unfounded"]) == (1, 0, 0, 0)
    assert results["actions"] == sum(len(one.steps) for one in works) / len(works)
    assert results["recall"] >= 0.8
    names = {f"{one.topic.id}.md" for one in works} | {"report.json"}
    assert {file.name for file in (tmp_path / "out/report").iterdir()} == names
    text = (tmp_path / "out/report" / f"{works[0].topic.id}.md").read_text()
    assert text.startswith(f"# {works[0].topic.query}\n\n## 1 ")
    assert "## Sources" in text
    steps = read_trajectories(Dataset(tmp_path / "out/trajectories"))
    assert all([m.role for m in step.messages] == ["system", "user", "assistant"] for step in steps)
    taken = json.loads((tmp_path / "out/report/report.json").read_text())["details"]["actions_taken"]
    assert Counter(step.kind for step in steps) == taken
    assert {step.reward for step in steps} == {one.score for one in works}


def test_company_and_batches_decide_nothing(inputs: dict[str, Any], tmp_path: Path) -> None:
    drawn = [report(inputs, tmp_path / str(size), temperature=1.0, batch_size=size) for size in (1, 2)]
    assert drawn[0].results == drawn[1].results
    files = [sorted((context.out / "report").iterdir()) for context in drawn]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_a_stranger_to_the_format_writes_nothing(inputs: dict[str, Any], tmp_path: Path) -> None:
    stranger = {**inputs, "model": Model(inputs["model"].path.parents[2] / "newborn")}
    results = report(stranger, tmp_path, "heldout").results
    assert (results["score"], results["finished"], results["sections"]) == (0, 0, 0)
    assert results["malformed"] + results["refused"] == 3
    assert results["comprehensiveness"] == results["readability"] == 1


@pytest.mark.parametrize(("window", "actions"), [(40, 0), (300, 4)])
def test_a_report_ends_where_its_prompt_fills_the_window(
    inputs: dict[str, Any], tmp_path: Path, window: int, actions: int
) -> None:
    results = report(inputs, tmp_path, window=window, turn_tokens=39, topics=1).results
    assert results["score"] == results["finished"] == 0
    assert results["actions"] <= actions


@pytest.fixture(scope="module")
def rollouts(inputs: dict[str, Any]) -> list[Rollout]:
    environment, model = (
        open_reports(inputs["index"], inputs["train"]),
        load_model(inputs["model"].path, dtype=torch.float32),
    )
    renderer = load_renderer(inputs["model"])
    engine, tasks = TransformersEngine(model, renderer.stop_id, Sampling(HEAT)), [*environment.tasks] * 4
    with Toolbox(environment.tools) as tools:
        return roll_out(engine, environment, tools, renderer, tasks, range(8), Room(1, 96, 480))


def test_a_rollout_is_the_conversations_of_a_report(inputs: dict[str, Any], rollouts: list[Rollout]) -> None:
    renderer: Renderer = load_renderer(inputs["model"])
    assert max(one.num_turns for one in rollouts) >= 5
    for one in rollouts:
        assert len(one.begins) == one.num_turns == one.counts["turns"]
        assert len(one.trajectory.messages) == 3 * one.num_turns
        for turn, begin in enumerate(one.begins):
            end = one.begins[turn + 1] if turn + 1 < len(one.begins) else len(one.ids)
            assert one.positions[begin:end] == list(range(end - begin))
            assert set(one.turn_of[begin:end]) == {-1, turn}
            system, user, _ = one.trajectory.messages[3 * turn : 3 * turn + 3]
            prompt = renderer.encode([system, user], open_turn=True).ids
            assert one.ids[begin : one.starts[turn]] == prompt


@pytest.mark.parametrize("hybrid", [False, True], ids=["full", "linear"])
def test_log_probabilities_of_a_whole_report_are_those_of_each_action(
    inputs: dict[str, Any], rollouts: list[Rollout], hybrid: bool
) -> None:
    """Reports beside each other, and one pass an action: the same numbers and gradients; also where states run on."""
    model = load_model(inputs["model"].path, dtype=torch.float32)
    model = apply(model, [HybridHeads(full_heads=((0, 1), (0,)))]) if hybrid else model
    found = rollouts[:3]
    assert max(one.num_turns for one in found) > 1
    ids = padded([one.ids for one in found], 0)
    sampled = padded([one.turn_of for one in found], -1) >= 0
    together, _ = policy_log_probs(model, ids, sampled, HEAT, positions_of(found))
    (gradient,) = torch.autograd.grad(together.sum(), [model.get_input_embeddings().weight])
    apart = torch.zeros_like(together)
    for row, one in enumerate(found):
        for begin, end in pairwise([*one.begins, len(one.ids)]):
            part = slice(row, row + 1), slice(begin, end)
            apart[part], _ = policy_log_probs(model, ids[part], sampled[part], HEAT)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad(apart.sum(), [model.get_input_embeddings().weight])
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
    blind, _ = policy_log_probs(model, ids, sampled, HEAT)
    assert (blind - together).abs().max() > 1e-2, "without positions an action would see those before"
    if not hybrid:
        torch.testing.assert_close(together, padded([one.logp for one in found], 0.0), atol=1e-4, rtol=1e-4)


def test_the_advantage_of_a_report_is_that_of_each_action_and_sums_to_nothing(rollouts: list[Rollout]) -> None:
    params = ReportLearningParameters()
    found = [Experience(one, place % 2, False, [], []) for place, one in enumerate(rollouts)]
    assert len({one.trajectory.reward for one in rollouts[::2]}) > 1, "some went better than others"
    advantage_NT = turn_advantages(found, params)
    first_N = advantage_NT[:, 0]
    for row, one in enumerate(rollouts):
        assert torch.equal(advantage_NT[row, : one.num_turns], first_N[row].expand(one.num_turns))
        assert not advantage_NT[row, one.num_turns :].any()
    for group in (0, 1):
        assert first_N[group::2].sum().item() == pytest.approx(0, abs=1e-9)
    tokens = Tokens.of(found, params)
    assert tokens.weight.sum() == pytest.approx(len(rollouts))
    assert tokens.positions is not None
    for row, one in enumerate(rollouts):
        assert torch.equal(tokens.sampled[row, : len(one.ids)], torch.tensor(one.turn_of) >= 0)
        assert tokens.advantage[row][tokens.sampled[row]].unique().tolist() == [first_N[row].float().item()]


@pytest.mark.parametrize("kind", ["exercises", "train"])
def test_it_learns_from_single_actions_and_from_whole_reports(
    inputs: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    whole = kind == "train"
    context = learn(inputs, tmp_path, inputs[kind], temperature=HEAT, micro_batch=2)
    found = read_trajectories(Dataset(tmp_path / "out/rollouts"))
    assert {one.kind for one in found} <= ({*NAMES, "refused"} if whole else SKILLS)
    assert all([message.role for message in one.messages] == ["system", "user", "assistant"] for one in found)
    kept = [*Diary(tmp_path / "scratch/rollouts").all(2)]
    assert found == [row for experiences in kept for one in experiences for row in one.rollout.rows]
    assert (max(one.rollout.num_turns for one in kept[0]) > 1) == whole
    assert curve(context, "reward") == [
        pytest.approx(sum(one.rollout.trajectory.reward for one in experiences) / 8) for experiences in kept
    ]
    assert curve(context, "kl")[0] == pytest.approx(0, abs=1e-6)
    before, after = (weights(path) for path in (inputs["model"].path, tmp_path / "out/model"))
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert report({**inputs, "model": Model(tmp_path / "out/model")}, tmp_path / "report", topics=1).results["tokens"]


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_micro_batches_decide_nothing(inputs: dict[str, Any], tmp_path: Path, zero_stage: int) -> None:
    """Reports of different length in one row each, beside others or alone: the same loss and the same update."""
    settings = {"steps": 1, "temperature": HEAT}
    one = learn(inputs, tmp_path / "one", inputs["train"], **settings, micro_batch=1)
    four = learn(inputs, tmp_path / "four", inputs["train"], **settings, micro_batch=4, zero_stage=zero_stage)
    assert curve(one, "policy_loss") == pytest.approx(curve(four, "policy_loss"), abs=1e-5)
    assert curve(one, "grad_norm") == pytest.approx(curve(four, "grad_norm"), rel=1e-4)
    together = weights(four.out / "model")
    for name, expected in weights(one.out / "model").items():
        torch.testing.assert_close(together[name], expected, atol=2e-4, rtol=0)


@pytest.mark.cluster
def test_two_workers_learn_what_one_does(inputs: dict[str, Any], tmp_path: Path, ray_cluster: None) -> None:
    """Each reads as many actions as its reports have, whatever the other does."""
    given = {name: inputs[name] for name in ("model", "index")} | {"tasks": inputs["train"]}
    losses = []
    for workers in (1, 2):
        directory = tmp_path / str(workers)
        (directory / "scratch").mkdir(parents=True)
        events: list[dict[str, Any]] = []
        stage = AgentReportLearn(ReportLearningParameters.model_validate({**LEARN, "zero_stage": workers}))
        resources = Resources(workers=workers, cpus=0.5)
        stage.run(Context(given, directory / "out", directory / "scratch", 1, resources, emit=events.append))
        curves = [event["values"] for event in events if event["event"] == "curve"]
        losses.append([values["policy_loss"] for values in curves if "policy_loss" in values])
    texts = [read_trajectories(Dataset(tmp_path / str(workers) / "out/rollouts"))[:8] for workers in (1, 2)]
    assert texts[0] == texts[1]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    assert len(losses[1]) == 2


def test_what_it_cannot_learn_from_is_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 of 2 questions leave room"):
        learn(inputs, tmp_path, inputs["train"], window=100)
    with pytest.raises(UserError, match="has neither topics nor exercises of reports"):
        learn(inputs, tmp_path, inputs["steps"])
    with pytest.raises(UserError, match="has exercises, no topics"):
        report(inputs, tmp_path, "exercises")
    with pytest.raises(UserError, match="exceeds the model's context of 768"):
        report(inputs, tmp_path, window=1000)
    with pytest.raises(UserError, match="exceeds the model's context of 768"):
        learn(inputs, tmp_path, inputs["train"], window=1000)
    shutil.copytree(inputs["model"].path, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    judge, given = Model(tmp_path / "model"), {"model": inputs["model"], "index": inputs["index"]}
    stages = ((AgentReport, "topics", ROOM), (AgentReportLearn, "tasks", ROOM), (AgentReportExpert, "topics", {}))
    for stage, asked, room in stages:
        with pytest.raises(UserError, match=r"^judge: .* has no tokenizer\.json"):
            run(stage, {**given, asked: inputs["train"], "judge": judge}, tmp_path, **room)
