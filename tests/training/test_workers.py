"""Two workers under Ray Train: the same numbers as one, whatever ZeRO shares out, and errors that keep their name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.training.checkpoints import newest
from stages.training.local import train_as
from stages.training.task import Task
from tests.training.language_model import LanguageModel, parameters, run

pytestmark = pytest.mark.usefixtures("ray_cluster")
SETUPS = [(precision, stage) for precision in ("fp32", "bf16") for stage in range(4)]


def every_setup(config: dict) -> None:
    """A Ray Train worker that trains every task in turn: starting workers takes longer than training."""
    import ray.train

    place = ray.train.get_context()
    for number, task in enumerate(config["tasks"]):
        emit = lambda event, number=number: config["queue"].put((number, event))  # noqa: E731
        train_as(task, place.get_world_rank(), place.get_world_size(), emit)


def test_two_workers_at_every_zero_stage_equal_one(recipe: LanguageModel, tmp_path: Path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    recipe = dataclasses.replace(recipe, masked=True)
    settings = {"micro_batch": 2, "batch_sequences": 7}  # shares of 4 and 3: one worker pads its last micro-batch
    tasks = [
        Task(recipe, parameters(recipe, precision=p, zero_stage=z, **settings), 3, tmp_path / f"{p}-{z}")
        for p, z in SETUPS
    ]
    queue = Queue(actor_options={"num_cpus": 0})
    TorchTrainer(
        every_setup,
        train_loop_config={"tasks": tasks, "queue": queue},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    curves = [(n, e["values"]) for n, e in queue.get_nowait_batch(queue.size()) if e["event"] == "curve"]
    for number, (precision, _) in enumerate(SETUPS):
        one = run(recipe, tmp_path / f"one-{number}", precision=precision, **settings)
        tolerance = 1e-5 if precision == "fp32" else 2e-3
        for name, rel in (("loss", tolerance), ("grad_norm", 10 * tolerance)):
            two = [values[name] for n, values in curves if n == number]
            assert two == pytest.approx(one.curve(name), rel=rel), SETUPS[number]


def test_a_workers_error_comes_home_and_the_retry_resumes(recipe: LanguageModel, tmp_path: Path):
    settings = {"zero_stage": 3, "checkpoint_minutes": 0, "micro_batch": 4}
    faulty = dataclasses.replace(recipe, fault="user")
    with pytest.raises(UserError, match="upside down") as caught:
        run(faulty, tmp_path / "scratch", workers=2, **settings)
    assert caught.value.fix == "turn it"
    rest = run(recipe, tmp_path / "scratch", workers=2, **settings)
    one = run(recipe, tmp_path / "one")
    assert rest.curve("loss") == pytest.approx(one.curve("loss")[3:], rel=1e-5)
    assert rest.result.figures["saved"] == 1.0
    assert [event["done"] for event in rest.events if event["event"] == "progress"] == [768, 960]


def test_training_ends_when_nobody_takes_its_events(recipe: LanguageModel, tmp_path: Path):
    class FullError(Exception):
        pass

    taken: list[dict] = []

    def emit(event: dict) -> None:
        taken.append(event)
        if event["event"] == "curve":
            raise FullError("no space left")

    with pytest.raises(FullError, match="no space left"):
        run(recipe, tmp_path / "scratch", workers=2, emit=emit, tokens=400 * 8 * recipe.data.card.sequence_length)
    assert sum(event["event"] == "curve" for event in taken) == 1
    saved = newest(tmp_path / "scratch/checkpoints")
    assert saved is not None
    assert saved.step < 400, "it stopped early, with a checkpoint to go on from"
