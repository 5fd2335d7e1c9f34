"""How well a causal language model predicts windows of tokens, in float32, a few hundred positions at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import UserError
from stages.evaluate.distance import chunk_positions, evaluating, next_token_logits
from stages.evaluate.precision import gives_nan
from stages.evaluate.prediction import Predictor
from stages.stage import Progress


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

    def byte_perplexity(self, tokens_per_byte: float) -> float:
        """The perplexity of a byte of text: 2 to the power of `bits_per_byte`."""
        nats_per_byte = self.nats_per_token * tokens_per_byte
        return math.exp(nats_per_byte) if nats_per_byte < 700 else math.inf


def likelihood(
    model: nn.Module,
    windows_NT: Tensor,
    *,
    tail_T: Tensor | None = None,
    tail_targets: int | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Likelihood:
    """Negative log-likelihood of the tokens 1..T-1 of each window, given those before them in the same window.

    `tail_T` is one more window, of any length from 2, of which only the last `tail_targets` tokens count (without it,
    all but the first). It goes through the model by itself: nothing is ever padded, so padding cannot change the
    figure, whatever a model does with it. No context is carried from window to window. The result is independent of
    `batch_size` up to the rounding of the model's own matrix products. Raises UserError when there is nothing to
    predict, or when a logit is not a number, naming the window.
    """
    batches = [(ids_BT, ids_BT.shape[1] - 1) for ids_BT in windows_NT.split(batch_size) if len(ids_BT)]
    if tail_T is not None:
        batches.append((tail_T[None], len(tail_T) - 1 if tail_targets is None else tail_targets))
    num_tokens = sum(len(ids_BT) * num_targets for ids_BT, num_targets in batches)
    if num_tokens == 0:
        raise UserError("there is no token to predict", fix="give text of at least two tokens, or longer windows")
    total, done, predictor = 0.0, 0, Predictor(model)
    with evaluating(model), torch.no_grad():
        for ids_BT, num_targets in batches:
            total += _batch_nats(predictor, ids_BT, num_targets, first_window=done)
            done += len(ids_BT)
            if progress:
                progress(done, sum(len(ids_BT) for ids_BT, _ in batches), "windows")
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


def _batch_nats(predictor: Predictor, ids_BT: Tensor, num_targets: int, first_window: int) -> float:
    """Nats of the last `num_targets` tokens of each window; a batch of which not all count is one window."""
    prediction, targets_P, parts = predictor.predict(ids_BT), ids_BT[:, 1:].flatten(), []
    chunk, first = chunk_positions(prediction.vocab_size), prediction.num_positions - len(ids_BT) * num_targets
    for start in range(first, prediction.num_positions, chunk):
        logits_PV = prediction.read(start, min(start + chunk, prediction.num_positions))
        targets = targets_P[start : start + chunk].to(logits_PV.device)
        parts.append(functional.cross_entropy(logits_PV.float(), targets, reduction="none"))
    nats_P = torch.cat(parts)
    if torch.isnan(nats_P).any():
        window, position = divmod(first + int(torch.isnan(nats_P).nonzero()[0]), ids_BT.shape[1] - 1)
        raise gives_nan(f"the model gives NaN at position {position} of window {first_window + window}")
    return nats_P.double().sum().item()
