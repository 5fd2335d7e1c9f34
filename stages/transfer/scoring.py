"""From what surveys found to the report of head scores: maps, metrics, agreement of the methods, figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from stages.transfer.head_map import draw_scores
from stages.transfer.heads import HeadShape
from stages.transfer.ranking import (
    capability_score,
    combined,
    consistency,
    grouped,
    largest,
    mean_gini,
    overlap,
    spearman,
)
from stages.transfer.survey import Inquiry, Survey

DIGITS: Final = 6
"""Decimals of an effect in the report: a share of the logit difference."""

SHARES: Final = {"1/4": 1 / 4, "1/8": 1 / 8}
"""Shares of full-attention heads in use, at which the choices of two methods are compared."""


def report(
    inquiries: Mapping[str, Inquiry], shape: HeadShape, figure: Path, threshold: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and details of the report, by the first method of each inquiry; draws the head map into `figure`."""
    surveys = {name: next(iter(inquiry.surveys.values())) for name, inquiry in inquiries.items()}
    by_capability = {name: capability_score(survey.effects, threshold) for name, survey in surveys.items()}
    scores_LH = _scores(surveys.values(), threshold)
    maps = {"score": scores_LH, **by_capability} if len(by_capability) > 1 else {"score": scores_LH}
    draw_scores(figure, shape, {title: _plain(values_LH) for title, values_LH in maps.items()})
    agreement = _agreement(inquiries, threshold)
    critical_LH = largest(list(by_capability.values())) > threshold
    metrics = {
        "pairs_used": float(sum(len(pairs) for one in inquiries.values() for pairs in one.used.values())),
        "pairs_dropped": float(sum(sum(one.dropped.values()) for one in inquiries.values())),
        "critical_share": critical_LH.double().mean().item(),
        "gini": mean_gini(scores_LH),
    }
    if agreement:
        metrics["attribution_rank_correlation"] = agreement["score"]
    details = {
        "shape": {"layers": shape.num_layers, "query_heads": shape.num_heads, "key_value_heads": shape.num_groups},
        "scores": _plain(scores_LH),
        "group_scores": {name: _plain(values) for name, values in grouped(scores_LH, shape.num_groups).items()},
        "capabilities": {name: _capability(one, surveys[name], threshold) for name, one in inquiries.items()},
        **({"attribution": agreement} if agreement else {}),
    }
    return metrics, details


def _scores(surveys: Iterable[Survey], threshold: float) -> Tensor:
    return combined(torch.stack([capability_score(survey.effects, threshold) for survey in surveys]))


def _capability(inquiry: Inquiry, survey: Survey, threshold: float) -> dict[str, Any]:
    effects = survey.effects
    return {
        "pairs": {
            probe: {"used": len(inquiry.used.get(probe, ())), "dropped": dropped}
            for probe, dropped in inquiry.dropped.items()
        },
        "score": _plain(capability_score(effects, threshold)),
        "consistency": _plain(consistency(effects, threshold)),
        "received": _plain(effects[0].mean(0)),
        "sent": [_plain(effect_SLH.mean(0)) for effect_SLH in effects[1:]],
        "listened_to": [mask_LH.nonzero().tolist() for mask_LH in reversed(survey.path)],
    }


def _agreement(inquiries: Mapping[str, Inquiry], threshold: float) -> dict[str, Any]:
    """How attribution agrees with exact patching, where both were done."""
    if not all("attribution" in inquiry.surveys and "exact" in inquiry.surveys for inquiry in inquiries.values()):
        return {}
    exact, approximate = (
        _scores([inquiry.surveys[name] for inquiry in inquiries.values()], threshold)
        for name in ("exact", "attribution")
    )
    return {
        "score": spearman(exact, approximate),
        "overlap": {name: overlap(exact, approximate, share) for name, share in SHARES.items()},
        "capabilities": {name: _by_round(inquiry.surveys) for name, inquiry in inquiries.items()},
        "scores": _plain(approximate),
    }


def _by_round(surveys: Mapping[str, Survey]) -> dict[str, Any]:
    pairs = list(zip(surveys["exact"].effects, surveys["attribution"].effects, strict=False))
    correlations = [spearman(exact.mean(0), approximate.mean(0)) for exact, approximate in pairs]
    return {"received": correlations[0], "sent": correlations[1:]}


def _plain(values: Tensor) -> list[Any]:
    return [[round(value, DIGITS) + 0.0 for value in row] for row in values.tolist()]  # + 0.0: no -0.0
