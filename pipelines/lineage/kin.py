"""The runs that a run goes back to, and those that went on from it: linked both ways in MLflow.

The later run knows the earlier one when it is mirrored, and writes itself into the earlier one's tag and description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

from mlflow.entities import Run

from pipelines.lineage.note import link, plain, with_followers
from pipelines.lineage.tracker import Tracker
from pipelines.running.journal import Event

RELATIONS: Final = {"rerun_of": ("reruns", "rerun by"), "resumes": ("goes on with", "gone on with by")}
"""Field of the event that starts a run; how the later run tells of the earlier one, and the other way round."""
MOMENT: Final = re.compile(r"\d{8}-\d{6}(?=-)")
FOLLOWERS: Final = "regraft.followers"
"""Tag of the earlier run: MLflow run of each later one, with name and relation."""

Followers = dict[str, tuple[str, str]]


def ancestors(tracker: Tracker, started: Event) -> tuple[str, dict[str, str]]:
    """What the run goes back to: as Markdown for its headline, and as tags."""
    texts, tags = [], {}
    for field, (relation, _) in RELATIONS.items():
        if name := str(started.get(field) or ""):
            found = tracker.parent_of(name)
            tags[f"regraft.{field}"] = name
            if found is not None:
                tags[f"regraft.{field}_mlflow_run"] = found.info.run_id
            texts.append(f"{relation} {_shown(name, found)}")
    return ", ".join(texts), tags


def follow(tracker: Tracker, started: Event, parent: str) -> None:
    """Write the run into those it goes back to. May be repeated."""
    for field in RELATIONS:
        found = tracker.parent_of(str(started.get(field) or "")) if started.get(field) else None
        if found is not None:
            followers = followers_of(found.data.tags) | {parent: (str(started["run"]), field)}
            told = with_followers(found.data.tags.get("mlflow.note.content", ""), followers_text(tracker, followers))
            tracker.log(found.info.run_id, tags={FOLLOWERS: json.dumps(followers), "mlflow.note.content": told})


def followers_of(tags: Mapping[str, str]) -> Followers:
    """The later runs that wrote themselves into these tags, by MLflow run: name and relation."""
    return {run: (name, field) for run, (name, field) in json.loads(tags.get(FOLLOWERS) or "{}").items()}


def followers_text(tracker: Tracker, followers: Followers) -> str:
    """The later runs as Markdown, newest last; "" without any."""
    return ", ".join(_told(tracker, followers))


def _told(tracker: Tracker, followers: Followers) -> Iterator[str]:
    for run, (name, field) in followers.items():
        found = tracker.parent_of(name)
        if found is not None and found.info.run_id == run:
            yield f"{RELATIONS[field][1]} {_shown(name, found)}"


def _shown(name: str, found: Run | None) -> str:
    """Date and time alone, where a name has them: enough to name a run, and it leaves room for the picture."""
    text = moment[0] if (moment := MOMENT.match(name)) else name
    return link(text, found.info.experiment_id, found.info.run_id) if found is not None else plain(text)
