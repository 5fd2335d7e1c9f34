"""Whether the reports that a selection rests on are there, and of the model at hand."""

from __future__ import annotations

from collections.abc import Sequence

from stages.artifacts import Model, Report
from stages.errors import UserError
from stages.transfer.heads import HeadShape


def check_scores(strategy: str, report: Report | None, model: Model, shape: HeadShape) -> None:
    """Raise UserError unless `report` holds head scores of `model`, which has `shape`."""
    if report is None:
        raise UserError(
            f"{strategy} needs scores",
            where="scores",
            fix="give the report of a `transfer.score_heads`, or choose fixed, layer-random or global-random",
        )
    fix = "give the report of a `transfer.score_heads`"
    for name in ("scores", "shape"):
        report.detail(name, "holds no head scores", where="scores", fix=fix)
    details = report.content["details"]
    scored = HeadShape(*(details["shape"][key] for key in ("layers", "query_heads", "key_value_heads")))
    if scored != shape:
        raise UserError(
            f"the scores are of a model with {scored}, the model has {shape}",
            where="scores",
            fix="score this model with `transfer.score_heads`",
        )
    digest = details.get("model", {}).get("digest")
    if digest and model.digest and digest != model.digest:
        raise UserError(
            f"the scores are of the model {digest[:12]}, this one is {model.digest[:12]}",
            where="scores",
            fix="score this model with `transfer.score_heads`: other weights, other heads",
        )


def check_logs(name: str, reports: Sequence[Report], shape: HeadShape) -> None:
    """Raise UserError unless there is one of `reports` for each layer."""
    if len(reports) != shape.num_layers:
        raise UserError(
            f"halo-layers needs one report of {name} for each of {shape.num_layers} layers, got {len(reports)}",
            where=name,
            fix="give the arms of a matrix over the layers, first to last",
        )


def figure(report: Report, metric: str, name: str) -> float:
    """The metric `metric` of a report given as input `name`; UserError naming those there are."""
    metrics = report.content["metrics"]
    if metric not in metrics:
        raise UserError(
            f"the report {report.content.get('title')!r} has no metric {metric!r}",
            where=name,
            fix=f"set {name}_metric to one of {', '.join(sorted(metrics))}",
        )
    return metrics[metric]
