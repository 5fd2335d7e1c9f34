"""Checkpoints to resume from: DeepSpeed's files in a directory per step, complete once its marker is there.

The marker is written last, so that a run killed while saving leaves a directory that the next one ignores and removes.
Only the newest complete checkpoint is kept. Random numbers and the data order need no saving: both are functions of the
seed and the step (`stages.training.order`).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch.distributed

from stages.training.engine import engine_stage

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from stages.training.recipe import Worker
    from stages.training.settings import TrainingParameters

MARKER: Final = "complete.json"


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is cut into files: only training of the same layout can read it."""

    zero_stage: int
    world_size: int
    dtype: str
    """Of forward and backward: it decides the names of the files, and `precision: auto` differs between machines."""

    @classmethod
    def of(cls, settings: TrainingParameters, worker: Worker) -> Layout:
        """The layout of training with `settings` on workers like `worker`."""
        return cls(engine_stage(settings), worker.world_size, worker.computed_in)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `step` updates were made, the last of them at loss `loss`."""

    directory: Path
    step: int
    loss: float
    layout: Layout | None
    """None when another version of this project wrote it, with another idea of a layout."""


def newest(directory: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `directory`, or None."""
    found = [_read(marker) for marker in directory.glob(f"step-*/{MARKER}")]
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def save(engine: DeepSpeedEngine, directory: Path, step: int, loss: float, layout: Layout) -> None:
    """Write the checkpoint after `step` updates, then remove the others. Every worker calls it together."""
    tag = f"step-{step:09d}"
    if torch.distributed.get_rank() == 0:
        (directory / tag / MARKER).unlink(missing_ok=True)  # of an earlier run of another layout
    torch.distributed.barrier()
    engine.save_checkpoint(str(directory), tag=tag, save_latest=False)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        _mark(directory / tag, {"step": step, "loss": loss, "layout": asdict(layout)})
        _remove_others(directory, keep=tag)
    torch.distributed.barrier()


def load(engine: DeepSpeedEngine, checkpoint: Checkpoint) -> None:
    """Put the weights and the optimiser of `checkpoint` into `engine`. Every worker calls it together."""
    path, _ = engine.load_checkpoint(str(checkpoint.directory.parent), tag=checkpoint.directory.name)
    assert path is not None, f"DeepSpeed did not load {checkpoint.directory}, which is marked complete"


def _read(marker: Path) -> Checkpoint:
    content = json.loads(marker.read_text(encoding="utf-8"))
    layout: dict[str, Any] = content["layout"]
    known = layout.keys() == {each.name for each in fields(Layout)}
    return Checkpoint(marker.parent, content["step"], content["loss"], Layout(**layout) if known else None)


def _mark(directory: Path, content: dict[str, object]) -> None:
    for file in directory.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    part = directory / f"{MARKER}.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(directory / MARKER)


def _remove_others(directory: Path, keep: str) -> None:
    for other in directory.glob("step-*"):
        if other.name != keep:
            (other / MARKER).unlink(missing_ok=True)  # a half-removed checkpoint must not look complete
            shutil.rmtree(other)
