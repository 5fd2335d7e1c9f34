"""From the harness's results to figures of a report: pure functions of dictionaries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.errors import UserError

Results = Mapping[str, Any]
"""What `harness.evaluate` returns."""


def scores(results: Results) -> dict[str, dict[str, Any]]:
    """For each task and group: its metrics with value, stderr and direction, documents, few-shot count and version."""
    found = {}
    for name, values in results["results"].items():
        metrics = dict(_metrics(values, results["higher_is_better"].get(name, {})))
        counts = results["n-samples"].get(name, {})
        found[name] = {
            "metrics": metrics,
            "num_documents": counts.get("effective"),
            "num_available": counts.get("original"),
            "num_fewshot": results["n-shot"].get(name),
            "version": results["versions"].get(name),
            **_baselines(results, name),
        }
    return found


def headline(results: Results, found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The figures by name, `task_metric`: of what was asked for, so of a group itself and not of its members.

    `accuracy_mean` is the mean of their `acc`, where any has one. Raises UserError when nothing was measured.
    """
    top = {name: task["metrics"] for name, task in found.items() if name not in _members(results, found)}
    figures = {
        _plain(f"{name}_{metric}"): score["value"] for name, metrics in top.items() for metric, score in metrics.items()
    }
    if not figures:
        raise UserError(f"the tasks {', '.join(found)} gave no figures", fix="name tasks that have metrics")
    accuracies = [metrics["acc"]["value"] for metrics in top.values() if "acc" in metrics]
    if accuracies:
        figures["accuracy_mean"] = sum(accuracies) / len(accuracies)
    return figures


def _metrics(values: Mapping[str, Any], higher: Mapping[str, bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The harness writes `metric,filter` and `metric_stderr,filter`, with "N/A" where there is no error to tell."""
    for key, value in values.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{kept}")
        yield (
            metric if kept == "none" else f"{metric}_{kept}",
            {
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                "higher_is_better": higher.get(metric),
            },
        )


def _baselines(results: Results, name: str) -> dict[str, float]:
    """Of a multiple choice task: `chance`, and what the choice that is right most often would score everywhere."""
    config, samples = results["configs"].get(name, {}), results["samples"].get(name, [])
    if config.get("output_type") != "multiple_choice" or not samples:
        return {}
    # the mutual-information metric asks for each choice a second time, without its context
    asked_twice = any(metric.get("metric") == "acc_mutual_info" for metric in config.get("metric_list") or [])
    choices = [len(sample["arguments"]) // (1 + asked_twice) for sample in samples]
    targets = Counter(str(sample["target"]) for sample in samples)
    return {
        "chance": sum(1 / count for count in choices) / len(choices),
        "most_frequent_choice": max(targets.values()) / len(samples),
    }


def _members(results: Results, found: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Tasks and groups that belong to a group with figures of its own."""
    members: set[str] = set()
    left: Sequence[str] = [name for name in results["group_subtasks"] if found.get(name, {}).get("metrics")]
    while left:
        left = [child for name in left for child in results["group_subtasks"].get(name, []) if child not in members]
        members.update(left)
    return members


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)
