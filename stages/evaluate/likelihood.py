"""How well a causal language model predicts windows of tokens, summed in float32 a few hundred positions at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.evaluate.distance import evaluating, next_token_logits

CHUNK_POSITIONS = 512
"""Positions whose float32 log-probabilities are held at once: 100 MB for a vocabulary of 49152."""

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood, in nats, over `num_tokens` predicted tokens."""

    total_nats: float
    num_tokens: int

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood of a token."""
        return self.total_nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """The exponential of the mean; infinite where that overflows."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    def bits_per_byte(self, tokens_per_byte: float) -> float:
        """Bits to encode a byte of text, which unlike perplexity compares across tokenizers."""
        return self.nats_per_token / math.log(2) * tokens_per_byte


def likelihood(
    model: nn.Module, windows_NT: Tensor, *, batch_size: int = 8, progress: Progress | None = None
) -> Likelihood:
    """Negative log-likelihood of the tokens 1..T-1 of each window, given those before them in the same window.

    The windows do not overlap and no context is carried over. Raises UserError when a logit is not a number, naming the
    window. The result is independent of `batch_size` up to the rounding of the model's own matrix products.
    """
    total, num_tokens = 0.0, windows_NT.shape[0] * (windows_NT.shape[1] - 1)
    with evaluating(model), torch.no_grad():
        for start in range(0, windows_NT.shape[0], batch_size):
            ids_BT = windows_NT[start : start + batch_size]
            total += _batch_nats(model, ids_BT, first_window=start)
            if progress:
                progress(min(start + batch_size, windows_NT.shape[0]), windows_NT.shape[0], "windows")
    return Likelihood(total, num_tokens)


def naive_likelihood(model: nn.Module, windows_NT: Tensor) -> Likelihood:
    """Reference for `likelihood`: one window, one position, one float64 sum at a time."""
    total, num_tokens = 0.0, 0
    with evaluating(model), torch.no_grad():
        for window_T in windows_NT:
            logits_TV = next_token_logits(model, window_T[None])[0]
            for position, token in enumerate(window_T[1:].tolist()):
                total -= torch.log_softmax(logits_TV[position].double(), dim=-1)[token].item()
                num_tokens += 1
    return Likelihood(total, num_tokens)


def _batch_nats(model: nn.Module, ids_BT: Tensor, first_window: int) -> float:
    logits_BPV = next_token_logits(model, ids_BT)
    targets_BP = ids_BT[:, 1:].to(logits_BPV.device)
    nats_BP = torch.empty(targets_BP.shape, dtype=torch.float32, device=logits_BPV.device)
    for start in range(0, targets_BP.shape[1], chunk := max(1, CHUNK_POSITIONS // ids_BT.shape[0])):
        part = slice(start, start + chunk)
        log_BPV = torch.log_softmax(logits_BPV[:, part].float(), dim=-1)
        nats_BP[:, part] = -log_BPV.gather(-1, targets_BP[:, part, None]).squeeze(-1)
    if torch.isnan(nats_BP).any():
        window, position = torch.isnan(nats_BP).nonzero()[0].tolist()
        raise UserError(
            f"the model gives NaN at position {position} of window {first_window + window}: its weights are damaged, "
            "or overflow in this dtype",
            fix="try dtype: float32; if NaN stays, look at the stage that made the model",
        )
    return nats_BP.double().sum().item()
