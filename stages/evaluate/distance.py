"""How far a model has moved from its parent, on held-out text.

Three figures tell most of it: the Kullback-Leibler divergence between their next-token distributions (in nats), the
ratio of their perplexities, and how often their first choices agree. They stream over batches, over chunks of positions
and over blocks of the vocabulary: logits of a few hundred positions exist at a time, and their float32 copies a block
at a time, so that two models of 262144 tokens can be compared in a few hundred megabytes beside their weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from grafts.arithmetic import computing
from stages.errors import UserError
from stages.evaluate.divergence import TokenDistance, token_distance
from stages.evaluate.prediction import Prediction, Predictor
from stages.stage import Progress

CHUNK_POSITIONS = 256
"""Positions whose logits are held at once, at most."""
CHUNK_LOGITS = 2**24
"""Logits of one model held at once, at most: 64 positions of a vocabulary of 262144."""


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

    def metrics(self) -> dict[str, float]:
        """The figures by the names that every stage reports and gates use."""
        return {
            "kl_to_parent": self.kl,
            "kl_to_parent_p99": self.kl_p99,
            "top1_agreement": self.top1_agreement,
            "perplexity_ratio": self.perplexity_ratio,
            "parent_perplexity": self.parent_perplexity,
            "child_perplexity": self.child_perplexity,
        }


@dataclass(frozen=True)
class Comparison:
    """A distance and, for models of equal depth and width, how far each layer has turned."""

    distance: Distance
    layer_cosine: tuple[float, ...]
    """Mean over positions of the cosine between both models' hidden states: of the embeddings, then of each layer's
    output (for the last one, as most models report it, after the final norm). Empty where the shapes differ."""


def distance(
    parent: nn.Module, child: nn.Module, windows: Tensor, *, batch_size: int = 4, progress: Progress | None = None
) -> Distance:
    """Measure `child` against `parent` on `windows` [N, T] of token ids, T >= 2; see `compare`.

    On a CPU without instructions for the models' type they compute in float32, and stay what they are.
    """
    with computing(parent, child):
        return compare(parent, child, windows, batch_size=batch_size, progress=progress).distance


def compare(
    parent: nn.Module,
    child: nn.Module,
    windows: Tensor,
    *,
    batch_size: int = 4,
    layers: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Measure `child` against `parent` on `windows` [N, T] of token ids, T >= 2; with `layers`, layer by layer as well.

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
    cosines: list[Tensor] = []
    predictors, total = (Predictor(parent), Predictor(child)), windows.shape[0] * (windows.shape[1] - 1)
    with evaluating(parent), evaluating(child), torch.no_grad():
        for ids_BT in windows.split(batch_size):
            both = [predictor.predict(ids_BT, layers=layers) for predictor in predictors]
            _require_one_vocabulary(*both)
            cosines.append(_layer_cosines(*both))
            parts.extend(_batch_distances(*both, ids_BT[:, 1:].flatten().long()))
            if progress:
                progress(float(sum(part.kl.numel() for part in parts)), float(total), "tokens")
    mean_L = torch.stack(cosines).sum(0) / total
    return Comparison(_summary(parts), tuple(mean_L.tolist()))


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


def chunk_positions(vocab_size: int) -> int:
    """Positions whose logits are held at once, for a vocabulary of that size."""
    return max(1, min(CHUNK_POSITIONS, CHUNK_LOGITS // vocab_size))


def _require_one_vocabulary(parent: Prediction, child: Prediction) -> None:
    if parent.vocab_size != child.vocab_size:
        raise UserError(
            f"the parent has {parent.vocab_size} tokens in its vocabulary, the child {child.vocab_size}",
            fix="only models of one vocabulary can be compared token by token",
        )


def _batch_distances(parent: Prediction, child: Prediction, targets_P: Tensor) -> Iterator[TokenDistance]:
    chunk = chunk_positions(parent.vocab_size)
    for start in range(0, parent.num_positions, chunk):
        stop = min(start + chunk, parent.num_positions)
        child_PV = child.read(start, stop)
        parent_PV = parent.read(start, stop).to(child_PV.device)
        found = token_distance(parent_PV, child_PV, targets_P[start:stop].to(child_PV.device))
        yield TokenDistance(found.kl.cpu(), found.agree.cpu(), found.parent_nll.cpu(), found.child_nll.cpu())


def _layer_cosines(parent: Prediction, child: Prediction) -> Tensor:
    """Sums over positions [L], float64; [0] where the models differ in depth or width."""
    shapes = [[layer.shape[-1] for layer in prediction.layers] for prediction in (parent, child)]
    if shapes[0] != shapes[1]:
        return torch.zeros(0, dtype=torch.float64)
    pairs = zip(parent.layers, child.layers, strict=True)
    sums = [_cosine(ours.to(theirs.device), theirs).sum(dtype=torch.float64).cpu() for ours, theirs in pairs]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)


def _cosine(parent_BTH: Tensor, child_BTH: Tensor) -> Tensor:
    """Cosine at each position [B, T]; equal vectors have 1, also where both are zero, as a padding token's may be."""
    cosine_BT = functional.cosine_similarity(parent_BTH.float(), child_BTH.float(), dim=-1)
    return cosine_BT.masked_fill((parent_BTH == child_BTH).all(-1), 1.0)


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
    return math.inf if nll >= 700 else math.exp(nll)
