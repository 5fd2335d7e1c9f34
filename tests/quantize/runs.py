"""Runs of the stages that quantise, and what their models compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from grafts.loader import load_model
from stages.artifacts import Dataset, Model
from stages.quantize.awq import AwqParams, QuantizeAwq
from stages.quantize.glowq import GlowqParams, QuantizeGlowq
from stages.quantize.glowq_s import GlowqSelectedParams, QuantizeGlowqSelected
from stages.quantize.gptq import GptqParams, QuantizeGptq
from stages.quantize.mixed import MixedParams, QuantizeMixed
from stages.quantize.rtn import QuantizeRoundToNearest, RoundToNearestParams
from stages.stage import Context

IDS = torch.arange(2, 50).reshape(2, 24)
STAGES: dict[str, tuple[Any, Any]] = {
    "glowq": (QuantizeGlowq, GlowqParams),
    "glowq_s": (QuantizeGlowqSelected, GlowqSelectedParams),
    "mixed": (QuantizeMixed, MixedParams),
    "rtn": (QuantizeRoundToNearest, RoundToNearestParams),
    "gptq": (QuantizeGptq, GptqParams),
    "awq": (QuantizeAwq, AwqParams),
}
SKIP_GATES = ("lm_head", "*.a_proj", "*.b_proj")
"""Linears of so few outputs that nothing is gained."""


def quantize(method: str, parent: Path, out: Path, tokens: Dataset, seed: int = 0, **params: Any) -> Context:
    stage_class, params_class = STAGES[method]
    size = {"rank": 6} if method.startswith("glowq") and "added_bytes_ratio" not in params else {}
    stage = stage_class(params_class(**{"group_size": 32, "symmetric": False, **size, **params}))
    data = {"heldout": tokens} if method == "rtn" else {"heldout": tokens, "calibration": tokens}
    inputs = {"model": Model(parent), **data}
    stage.check(inputs)
    context = Context(inputs=inputs, out=out / method, scratch=out / "scratch", seed=seed)
    stage.run(context)
    assert set(context.results) == set(stage.metrics)
    return context


def logits(path: Path, load: Any = load_model) -> torch.Tensor:
    with torch.no_grad():
        return load(path, dtype=torch.bfloat16)(input_ids=IDS).logits
