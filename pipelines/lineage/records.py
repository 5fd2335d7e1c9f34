"""Turns events into the flat names and short texts that MLflow can hold. Pure; imports no MLflow.

MLflow's limits, all of which raise or cut silently: names of letters, digits and `_-./: ` up to 250 characters,
parameters up to 6000, tags up to 8000, dataset digests up to 36. Parameters are cut far below that, to stay readable in
a table; the resolved pipeline file stands beside them in full.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from pipelines.evidence import clean_remote
from pipelines.lineage.redact import Redactor
from pipelines.lineage.view import REUSED, RunView, StageView
from pipelines.running.journal import Event

PARAM_LENGTH = 500
TAG_LENGTH = 5000
NAME_LENGTH = 250
PRODUCER = "regraft.producer_mlflow_run"
"""Tag of a stage whose result an earlier run made: the MLflow run of that."""
MOST_PARENT_PARAMS = 1000
"""Above this many the parent run's parameters would be a table that nobody reads and no page opens quickly."""


def cut(text: str, length: int) -> str:
    """`text`, or its beginning with an ellipsis, in at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a JSON value by dotted path; a list is a leaf, and so is an empty mapping."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def clean_name(name: str) -> str:
    """`name` in the characters MLflow takes: `pass@1` becomes `pass_at_1`."""
    name = re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_").replace("%", "_pct"))
    name = posixpath.normpath(name).lstrip("/.")[:NAME_LENGTH].rstrip("/")
    return name or "_"


def clean_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` under clean names; names that would fall together are kept apart by a number."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        unique, number = clean_name(name), 2
        while unique in result:
            unique, number = f"{clean_name(name)[: NAME_LENGTH - 5]}_{number}", number + 1
        result[unique] = value
    return result


def texts(values: Mapping[str, Any], length: int) -> dict[str, str]:
    """`values` as short strings under clean names."""
    return clean_names({name: cut(str(value), length) for name, value in values.items()})


def stage_params(stage: StageView, redactor: Redactor) -> dict[str, str]:
    """What the stage was told: identity as it is named, execution and resources under a prefix."""
    identity = redactor.tree(stage.params)
    around = redactor.tree({"execution": stage.execution, "resources": stage.resources})
    leaves = {name: value for name, value in flatten(around).items() if value != {}}
    return texts(flatten(identity) | leaves, PARAM_LENGTH)


def run_params(view: RunView, redactor: Redactor) -> dict[str, str]:
    """The seed, and the identity of every stage under its name: what one compares runs by."""
    leaves: dict[str, Any] = {"seed": view.started.get("seed")}
    for stage in view.stages.values():
        leaves |= {f"{stage.slug}.{name}": value for name, value in flatten(redactor.tree(stage.params)).items()}
    return texts(dict(list(leaves.items())[:MOST_PARENT_PARAMS]), PARAM_LENGTH)


def git_tags(git: Mapping[str, Any] | None) -> dict[str, str]:
    """MLflow's own tags for the source of a run."""
    git = git or {}
    tags = {f"mlflow.source.git.{name}": str(git[name]) for name in ("commit", "branch") if git.get(name)}
    if "dirty" in git:
        tags["mlflow.source.git.dirty"] = str(bool(git["dirty"])).lower()
    if git.get("remote"):
        tags["mlflow.source.git.repoURL"] = clean_remote(str(git["remote"]))
    return tags


def run_tags(view: RunView, uid: str, redactor: Redactor) -> dict[str, str]:
    """Tags of the parent run."""
    event = view.started
    tags = {
        "regraft.level": "run",
        "regraft.uid": uid,
        "regraft.run": event["run"],
        "regraft.pipeline": event["pipeline"],
        "regraft.store": event.get("store", ""),
        "regraft.command": _command(event.get("command", "")),
        "mlflow.source.name": event.get("file") or event["pipeline"],
        "mlflow.source.type": "PROJECT",
    }
    versions = {f"regraft.version.{name}": version for name, version in (event.get("versions") or {}).items()}
    return texts(redactor.tree(tags | versions) | git_tags(event.get("git")), TAG_LENGTH)


def stage_tags(view: RunView, stage: StageView, uid: str, key: str | None, redactor: Redactor) -> dict[str, str]:
    """Tags of a stage's run, known when it starts."""
    tags = {
        "regraft.level": "stage",
        "regraft.uid": uid,
        "regraft.run": view.started["run"],
        "regraft.pipeline": view.started["pipeline"],
        "regraft.stage": stage.name,
        "regraft.slug": stage.slug,
        "regraft.method": stage.uses,
        "regraft.attempt": str(stage.attempt or 1),
        "regraft.key": key or "",
        "mlflow.source.name": view.started.get("file") or view.started["pipeline"],
        "mlflow.source.type": "PROJECT",
    }
    return texts(redactor.tree(tags) | git_tags(view.started.get("git")), TAG_LENGTH)


def result_tags(event: Event, redactor: Redactor) -> dict[str, str]:
    """Tags of a stage's run, known when it is over."""
    cached = event["state"] in REUSED
    tags: dict[str, Any] = {"regraft.state": event["state"], "regraft.reason": event.get("reason") or ""}
    tags |= {"regraft.key": event.get("key") or "", "regraft.cache": "hit" if cached else "miss"}
    if cached and event.get("producer"):
        tags["regraft.producer_run"] = event["producer"]
    error = event.get("error") or {}
    tags |= {f"regraft.error.{part}": error[part] for part in ("message", "fix") if error.get(part)}
    tags |= {f"regraft.evidence.{name}": value for name, value in _words(event.get("evidence")).items()}
    return texts(redactor.tree(tags), TAG_LENGTH)


def drift_tags(acceptance: Mapping[str, Any], redactor: Redactor) -> dict[str, str]:
    """Tags of a stage whose artifact a person has accepted although its code had changed since."""
    told = {name: acceptance[name] for name in ("who", "reason", "when") if acceptance.get(name)}
    return texts(redactor.tree({f"regraft.drift.{name}": value for name, value in told.items()}), TAG_LENGTH)


def result_metrics(event: Event) -> dict[str, float]:
    """Final figures of a stage; numbers among the evidence come along under `evidence/`."""
    metrics = {**(event.get("metrics") or {}), "seconds": event.get("seconds")}
    evidence = {f"evidence/{name}": value for name, value in flatten(event.get("evidence") or {}).items()}
    return clean_names({name: float(value) for name, value in (metrics | evidence).items() if _is_number(value)})


def run_metrics(view: RunView) -> dict[str, float]:
    """Figures of the whole run: how it went, and each stage's final metrics under its name."""
    metrics = {
        f"stages/{state}": float(view.count(state)) for state in ("done", "cached", "kept", "failed", "skipped", "left")
    }
    for stage in view.stages.values():
        metrics |= {f"{stage.slug}/{name}": float(v) for name, v in stage.metrics.items() if _is_number(v)}
    if view.seconds is not None:
        metrics["seconds"] = float(view.seconds)
    return clean_names(metrics)


def _words(evidence: Any) -> dict[str, Any]:
    return {name: v for name, v in flatten(evidence or {}).items() if v not in (None, "", {}) and not _is_number(v)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _command(command: Any) -> str:
    return " ".join(map(str, command)) if isinstance(command, list) else str(command)
