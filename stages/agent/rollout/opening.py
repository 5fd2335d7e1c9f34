"""The engine that a stage asks for, for a policy that does not change."""

from __future__ import annotations

from typing import Literal

from stages.agent.rollout.engine import Engine, Sampling
from stages.artifacts import Model

EngineName = Literal["transformers", "vllm"]


def open_engine(name: EngineName, model: Model, stop_id: int, sampling: Sampling, dtype: str, window: int) -> Engine:
    """An engine with the weights of `model` in it.

    `dtype` is the name of a torch type, `window` the tokens of a conversation at most. Raises UserError where the
    engine does not run.
    """
    if name == "vllm":
        from stages.agent.rollout.vllm_engine import VllmEngine

        return VllmEngine(model, stop_id, sampling, dtype, window)
    from stages.agent.rollout.transformers_engine import TransformersEngine
    from stages.evaluate.loading import load_for_evaluation

    return TransformersEngine(load_for_evaluation(model, dtype), stop_id, sampling)
