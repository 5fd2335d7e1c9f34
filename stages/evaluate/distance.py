"""How far a model has moved from its parent, on held-out text.

Three figures tell most of it: the Kullback-Leibler divergence between their next-token distributions (in nats), the
ratio of their perplexities, and how often their first choices agree. They stream over batches and over chunks of
positions, so that the float32 distributions of a few hundred positions are held at a time, never of a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import UserError

CHUNK_POSITIONS = 256
"""Positions whose float32 distributions are held at once: 50 MB a model for a vocabulary of 49152."""

Progress = Callable[[float, float, str], None]
"""Called as `progress(done, total, "tokens")`; `Context.progress` fits."""


@dataclass(frozen=True)
class Distance:
    """A child's distance to its parent over `num_tokens` predicted tokens; all zero (ratio 1) for equal models."""

    kl: float
    """Mean KL(parent || child) of the next-token distributions, in nats."""
    kl_p99: float
    """99th percentile of the KL over the predicted positions, in nats."""
    top1_agreement: float
    """Share of positions where both models prefer the same token."""
    parent_perplexity: float
    child_perplexity: float
    perplexity_ratio: float
    """Child's perplexity over the parent's."""
    num_tokens: int

    def as_dict(self) -> dict[str, float]:
        """The figures by name, for a report."""
        return asdict(self)


@dataclass(frozen=True)
class TokenDistance:
    """The same figures for each of P positions: kl [P], agree [P], parent_nll [P], child_nll [P], all float32."""

    kl: Tensor
    agree: Tensor
    parent_nll: Tensor
    child_nll: Tensor


def token_distance(parent_PV: Tensor, child_PV: Tensor, targets_P: Tensor) -> TokenDistance:
    """Compare two sets of next-token logits at P positions whose true next tokens are `targets_P`.

    The logits may be of any floating type; the arithmetic is float32. KL(parent || child) is in nats.
    """
    parent_log_PV = functional.log_softmax(parent_PV.float(), dim=-1)
    child_log_PV = functional.log_softmax(child_PV.float(), dim=-1)
    return TokenDistance(
        kl=(parent_log_PV.exp() * (parent_log_PV - child_log_PV)).sum(-1),
        agree=(parent_log_PV.argmax(-1) == child_log_PV.argmax(-1)).float(),
        parent_nll=functional.nll_loss(parent_log_PV, targets_P, reduction="none"),
        child_nll=functional.nll_loss(child_log_PV, targets_P, reduction="none"),
    )


def distance(
    parent: nn.Module, child: nn.Module, windows: Tensor, *, batch_size: int = 4, progress: Progress | None = None
) -> Distance:
    """Measure `child` against `parent` on `windows` [N, T] of token ids, T >= 2.

    Both are Hugging Face causal language models over the same vocabulary, on any device; they are put in evaluation
    mode and given back as they were. Every position but the last of a window counts: T - 1 tokens a window.
    Raises UserError when there is nothing to measure or the vocabularies differ.
    """
    if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
        raise UserError(
            f"the distance of two models needs windows of at least 2 tokens, got {tuple(windows.shape)}",
            fix="give held-out data with at least one full window",
        )
    parts: list[TokenDistance] = []
    total = windows.shape[0] * (windows.shape[1] - 1)
    with evaluating(parent), evaluating(child), torch.no_grad():
        for ids_BT in windows.split(batch_size):
            parts.extend(_batch_distances(parent, child, ids_BT))
            if progress:
                progress(float(sum(part.kl.numel() for part in parts)), float(total), "tokens")
    return _summary(parts)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def next_token_logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Logits [B, T - 1, V] of `model` for the tokens 1..T-1 of `ids_BT`, on the model's device."""
    device = next(model.parameters()).device
    return model(input_ids=ids_BT[:, :-1].to(device), use_cache=False).logits


def _batch_distances(parent: nn.Module, child: nn.Module, ids_BT: Tensor) -> Iterator[TokenDistance]:
    child_PV = next_token_logits(child, ids_BT).flatten(0, 1)
    parent_PV = next_token_logits(parent, ids_BT).flatten(0, 1)
    if parent_PV.shape[-1] != child_PV.shape[-1]:
        raise UserError(
            f"the parent has {parent_PV.shape[-1]} tokens in its vocabulary, the child {child_PV.shape[-1]}",
            fix="only models of one vocabulary can be compared token by token",
        )
    targets_P = ids_BT[:, 1:].flatten().long().to(child_PV.device)
    chunks = (x.split(CHUNK_POSITIONS) for x in (parent_PV, child_PV, targets_P))
    for parent_part, child_part, targets in zip(*chunks, strict=True):
        found = token_distance(parent_part.to(child_part.device), child_part, targets)
        yield TokenDistance(found.kl.cpu(), found.agree.cpu(), found.parent_nll.cpu(), found.child_nll.cpu())


def _summary(parts: list[TokenDistance]) -> Distance:
    kl_P = torch.cat([part.kl for part in parts]).double()
    parent_nll = torch.cat([part.parent_nll for part in parts]).double().mean().item()
    child_nll = torch.cat([part.child_nll for part in parts]).double().mean().item()
    return Distance(
        kl=kl_P.mean().item(),
        kl_p99=percentile(kl_P, 0.99),
        top1_agreement=torch.cat([part.agree for part in parts]).double().mean().item(),
        parent_perplexity=_exp(parent_nll),
        child_perplexity=_exp(child_nll),
        perplexity_ratio=_exp(child_nll - parent_nll),
        num_tokens=kl_P.numel(),
    )


def percentile(values_P: Tensor, share: float) -> float:
    """The smallest value that at least `share` of `values_P` [P] do not exceed (any P: no size limit of quantile)."""
    rank = max(1, math.ceil(share * values_P.numel()))
    return values_P.kthvalue(rank).values.item()


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf
