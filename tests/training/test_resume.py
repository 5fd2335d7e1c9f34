"""A run that was killed goes on as if nothing had happened, to the bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from grafts import arithmetic
from stages.training import checkpoints
from tests.training.language_model import LanguageModel, Run, run


class KilledError(Exception):
    pass


def kill_at(step: int):
    """An emitter that kills the training once the curve of `step` comes, after the checkpoint before it."""

    def emit(event: dict) -> None:
        if event["event"] == "curve" and event["step"] == step:
            raise KilledError

    return emit


@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 0), ("fp32", 2), ("bf16", 0), ("bf16", 3)])
def test_resumed_equals_uninterrupted(recipe: LanguageModel, tmp_path: Path, precision, zero_stage):
    settings = {"precision": precision, "zero_stage": zero_stage, "micro_batch": 4, "checkpoint_minutes": 0}
    whole = run(dataclasses.replace(recipe, out=tmp_path / "whole"), tmp_path / "a", **settings)
    with pytest.raises(KilledError):
        run(recipe, tmp_path / "b", emit=kill_at(4), **settings)
    resumed = run(recipe, tmp_path / "b", **settings)
    assert resumed.curve("loss") == whole.curve("loss")[3:]
    assert resumed.curve("grad_norm") == whole.curve("grad_norm")[3:]
    assert resumed.weights == whole.weights


def test_only_the_newest_checkpoint_stays_and_half_ones_are_ignored(recipe: LanguageModel, tmp_path: Path):
    scratch = tmp_path / "scratch"
    with pytest.raises(KilledError):
        run(recipe, scratch, emit=kill_at(3), checkpoint_minutes=0)
    kept = list((scratch / "checkpoints").glob("step-*"))
    assert [directory.name for directory in kept] == ["step-000000002"]
    half = scratch / "checkpoints/step-000000004"
    half.mkdir()
    (half / "mp_rank_00_model_states.pt").write_bytes(b"half")
    assert len(run(recipe, scratch).curve("loss")) == 3


def test_a_checkpoint_is_not_complete_while_it_is_written_again(tmp_path: Path):
    class Killed:
        """An engine whose process dies in the middle of saving."""

        def save_checkpoint(self, directory: str, tag: str, **_: object) -> None:
            (Path(directory) / tag / "half.pt").write_bytes(b"half")
            raise KilledError

    old = tmp_path / "step-000000003"
    old.mkdir()
    (old / checkpoints.MARKER).write_text(json.dumps({"step": 3, "loss": 1.0, "layout": {"zero_stage": 0}}))
    layout = checkpoints.Layout(2, 1, "float32")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(KilledError):
            checkpoints.save(Killed(), tmp_path, 3, 0.5, layout)  # type: ignore[arg-type]
    finally:
        torch.distributed.destroy_process_group()
    assert checkpoints.newest(tmp_path) is None


def test_a_finished_run_resumes_at_its_end(recipe: LanguageModel, tmp_path: Path):
    first = run(recipe, tmp_path / "scratch", checkpoint_minutes=0)
    again = run(dataclasses.replace(recipe, out=tmp_path / "again"), tmp_path / "scratch")
    assert again.curve("loss") == []
    assert again.weights == first.weights
    assert again.result.figures == first.result.figures


def test_another_layout_starts_over_and_says_so(recipe: LanguageModel, tmp_path: Path):
    with pytest.raises(KilledError):
        run(recipe, tmp_path / "scratch", emit=kill_at(3), checkpoint_minutes=0)
    marker = next((tmp_path / "scratch/checkpoints").glob("step-*/complete.json"))
    assert json.loads(marker.read_text())["layout"] == {"dtype": "float32", "world_size": 1, "zero_stage": 0}
    started_over(run(recipe, tmp_path / "scratch", zero_stage=2))


def test_another_kind_of_machine_starts_over_and_says_so(recipe: LanguageModel, tmp_path: Path, monkeypatch):
    settings = {"precision": "auto", "zero_stage": 1}
    monkeypatch.setattr(arithmetic, "computes_in", lambda _dtype, _device="cpu": True)
    with pytest.raises(KilledError):
        run(recipe, tmp_path / "scratch", emit=kill_at(3), checkpoint_minutes=0, **settings)
    monkeypatch.setattr(arithmetic, "computes_in", lambda dtype, _device="cpu": dtype == torch.float32)
    started_over(run(recipe, tmp_path / "scratch", **settings))


def test_a_checkpoint_of_another_version_is_not_resumed(recipe: LanguageModel, tmp_path: Path):
    with pytest.raises(KilledError):
        run(recipe, tmp_path / "scratch", emit=kill_at(3), checkpoint_minutes=0)
    marker = next((tmp_path / "scratch/checkpoints").glob("step-*/complete.json"))
    content = json.loads(marker.read_text())
    del content["layout"]["dtype"]
    marker.write_text(json.dumps(content))
    started_over(run(recipe, tmp_path / "scratch"))


def started_over(finished: Run) -> None:
    assert len(finished.curve("loss")) == 5
    assert any("starting over" in event.get("text", "") for event in finished.events)
