"""The final figures of a stage as MLflow metrics, bound to the model they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Metric

from pipelines.lineage.links import DIGEST_LENGTH
from pipelines.lineage.records import clean_name, clean_names, result_metrics
from pipelines.lineage.view import StageView
from pipelines.running.journal import Event


def final_figures(
    stage: StageView, event: Event, read: Sequence[str], made: Sequence[str], time_ms: int
) -> list[Metric]:
    """The figures of a finished stage that read and made these logged models.

    What a stage measured is about the one model it made, or, if it made none, the one it read: an evaluation. Seconds
    and evidence are about the run alone.
    """
    about = _subject(event, read, made)
    own = clean_names(event.get("metrics") or {})
    steps = {clean_name(name): step for name, step in stage.last_steps.items()}
    return [
        Metric(name, value, time_ms, steps.get(name, 0), **(about if name in own else {}))
        for name, value in result_metrics(event).items()
    ]


def _subject(event: Event, read: Sequence[str], made: Sequence[str]) -> dict[str, Any]:
    if len(made) == 1:
        return {"model_id": made[0]}
    if made or len(read) != 1:
        return {}
    data = [item for item in event.get("inputs") or [] if item["kind"] == "dataset"]
    return {"model_id": read[0]} | (_measured_on(data[0]) if len(data) == 1 else {})


def _measured_on(item: Mapping[str, Any]) -> dict[str, str]:
    return {"dataset_name": f"{item['stage']}.{item['output']}", "dataset_digest": item["digest"][:DIGEST_LENGTH]}
