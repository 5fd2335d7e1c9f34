"""Turns written by vLLM, for policies whose weights do not change, on a machine with CUDA.

vLLM batches, keeps prefixes of conversations, and draws by itself: from the seed of a request, but other tokens than
`transformers_engine` draws from it. vLLM is imported by nothing but this engine, when it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from stages.agent.rollout.engine import Engine, Request, Sampling, Written
from stages.artifacts import Model
from stages.errors import UserError


class VllmEngine(Engine):
    """Writes with the model in a directory.

    `dtype` is the name of a torch type, `window` the tokens of a conversation at most. Raises UserError without vLLM or
    CUDA, for a grafted model, and where vLLM cannot tell the log-probabilities that `Written` asks for.
    """

    def __init__(self, model: Model, stop_id: int, sampling: Sampling, dtype: str, window: int) -> None:
        _require(model, sampling)
        self.stop_id, self.sampling, self._vllm = stop_id, sampling, import_module("vllm")
        self._model = self._vllm.LLM(
            model=str(model.path),
            dtype=dtype,
            max_model_len=window,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs" if sampling.temperature in (0, 1) else "processed_logprobs",
        )

    def forget(self) -> None:
        """Nothing: what vLLM keeps is of these weights, and they stay."""

    def write(self, requests: Sequence[Request]) -> list[Written]:
        """Write all turns in one call."""
        prompts = [{"prompt_token_ids": list(request.ids)} for request in requests]
        found = self._model.generate(prompts, [self._asked(request) for request in requests], use_tqdm=False)
        return [self._written(output.outputs[0]) for output in found]

    def _asked(self, request: Request) -> Any:
        return self._vllm.SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=[self.stop_id],
            ignore_eos=True,  # the one token that ends a turn is `stop_id`
            logprobs=0,  # of the token that was drawn, and of no other
            detokenize=False,
        )

    def _written(self, completion: Any) -> Written:
        ids = list(completion.token_ids)
        logp = [float(told[token].logprob) for token, told in zip(ids, completion.logprobs, strict=True)]
        return Written(ids, logp, ids[-1] == self.stop_id)


def _require(model: Model, sampling: Sampling) -> None:
    """Raise UserError for what this engine cannot do, on this machine or at all."""
    other = "set `engine: transformers`"
    if model.grafts:
        raise UserError("vLLM does not know the grafts of this model", fix=other)
    if sampling.temperature not in (0, 1) and sampling.top_p < 1:
        raise UserError(
            f"vLLM tells no log-probabilities of the whole distribution at temperature {sampling.temperature} with "
            f"top_p {sampling.top_p}",
            fix=f"set `top_p: 1`, or `temperature: 1`, or {other}",
        )
    if find_spec("vllm") is None:
        raise UserError("engine: vllm, but vLLM is not installed here", fix=f"pip install vllm, or {other}")
    if not torch.cuda.is_available():
        raise UserError("engine: vllm, but this machine has no CUDA device", fix=f"ask for `gpus: 1`, or {other}")
