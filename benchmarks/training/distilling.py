"""Distillation by forward KL: ours with the teacher at work or with what it said once, and TRL's GKD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.training.measuring import SEED, Listener, arguments, clocks, forget_peak, in_our_order, result, training
from grafts.loader import load_model
from stages.artifacts import Dataset, Model
from stages.distill.cache import CacheParameters, DistillCache
from stages.distill.logits import DistillLogits
from stages.distill.settings import LogitsParameters
from stages.stage import Context


def measure_online(task: dict[str, Any]) -> dict[str, float]:
    """`distill.logits` with its teacher."""
    return _measure(task, {})


def measure_cached(task: dict[str, Any]) -> dict[str, float]:
    """`distill.logits` with the 64 likeliest tokens at each position; the teacher has gone before anything counts."""
    out = Path(task["scratch"]) / "said"
    stage = DistillCache(CacheParameters(top_k=64))
    inputs = {"teacher": Model(Path(task["model"])), "data": Dataset(Path(task["data"]))}
    stage.run(Context(inputs, out=out, scratch=out / "scratch", seed=SEED))
    said = Dataset(next(path for path in out.iterdir() if list(path.glob("*.parquet"))))
    num_bytes = sum(file.stat().st_size for file in said.path.glob("*.parquet"))
    forget_peak()
    tokens = (task["steps"] + 1) * task["batch"] * task["length"]
    return {**_measure(task, {"cache": said}), "cache_bytes_per_token": num_bytes / tokens}


def _measure(task: dict[str, Any], more: dict[str, Any]) -> dict[str, float]:
    heard, scratch = Listener(), Path(task["scratch"])
    inputs = {"teacher": Model(Path(task["model"])), "student": Model(Path(task["student"]))}
    inputs |= {"data": Dataset(Path(task["data"])), **more}
    stage = DistillLogits(LogitsParameters(**training(task)))
    stage.run(Context(inputs, out=scratch / "out", scratch=scratch / "work", seed=SEED, emit=heard))
    return result(task, heard.ends, heard.losses)


def measure_trl(task: dict[str, Any]) -> dict[str, float]:
    """TRL's GKD trainer, never on policy, at the β where its divergence is the forward KL."""
    from transformers import AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # type: ignore[import-not-found]

    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(clocks())

    class Ordered(GKDTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    settings = {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "gradient_checkpointing": False}
    trainer = Ordered(
        model=load_model(Path(task["student"]), dtype=torch.float32),
        teacher_model=load_model(Path(task["model"]), dtype=torch.float32),
        args=GKDConfig(**arguments(task), **settings),
        data_collator=_collate,
        train_dataset=_rows(task),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        callbacks=[Clock()],
    )
    trainer.train()
    return result(task, ends, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def _rows(task: dict[str, Any]) -> Any:
    import datasets

    return datasets.Dataset.from_dict({"input_ids": [window.tolist() for window in in_our_order(task)]})


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids_BT = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": ids_BT, "prompts": ids_BT[:, :1]}
