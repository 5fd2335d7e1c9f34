"""What a stage read and made, as MLflow's datasets and logged models: the edges of the lineage.

A model is a logged model that refers to the store by address and digest; no weights are copied. The model a stage read
is the one with the same digest, whichever run made it. A dataset has the same name (`stage.output`) and digest on both
sides of an edge, which is how MLflow joins them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Run

from pipelines.lineage.note import PAGES, link, plain
from pipelines.lineage.records import PARAM_LENGTH, PRODUCER, cut, stage_params, texts
from pipelines.lineage.redact import Redactor
from pipelines.lineage.rollouts import Source, log_rollouts
from pipelines.lineage.tracker import Tracker
from pipelines.lineage.view import REUSED, StageView
from pipelines.running.journal import Event

DIGEST_LENGTH = 36
"""MLflow refuses a longer digest of a dataset; the full one stands in a tag."""
LARGEST_REPORT = 4 * 2**20
"""A report is copied into MLflow, to be read there, when it is at most this many bytes."""


@dataclass
class Linker:
    """Links the stages of one run; `models` remembers logged models by digest."""

    tracker: Tracker
    store: Path
    experiment: str
    uid: str
    run: str
    redactor: Redactor
    models: dict[str, str]
    own: dict[str, str] = field(default_factory=dict)
    """Models this run made, by stage, output and digest: found again after a crash."""
    _producers: dict[str, dict[str, Run]] = field(default_factory=dict)

    def recover(self) -> None:
        """Find the models that an earlier mirror of this run made."""
        for model in self.tracker.models("regraft.uid", self.uid):
            self.own[_made_by(model.tags)] = model.model_id

    def link(self, stage: StageView, event: Event, run: str) -> tuple[list[str], list[str]]:
        """Log the inputs and outputs of a finished stage; returns the models it read and those it made."""
        inputs, outputs = event.get("inputs") or [], event.get("outputs") or []
        datasets = [
            self._dataset(item, f"{item['stage']}.{item['output']}", "input") for item in inputs if _is_data(item)
        ]
        datasets += [
            self._dataset(item, f"{stage.name}.{item['name']}", "output") for item in outputs if _is_data(item)
        ]
        read = list(dict.fromkeys(self._model_in(item) for item in inputs if item["kind"] == "model"))
        made = list(
            dict.fromkeys(self._model_out(stage, event, item, run) for item in outputs if item["kind"] == "model")
        )
        if datasets or read:
            self.tracker.client.log_inputs(run, datasets=datasets, models=[LoggedModelInput(model) for model in read])
        self._log_outputs(run, made)
        return read, made

    def addresses(self) -> dict[str, str]:
        """Where MLflow's pages show the models of this run, by digest."""
        return {
            digest: f"#/experiments/{self.experiment}/models/{model}?{PAGES}" for digest, model in self.models.items()
        }

    def origin(self, event: Event, tags: dict[str, str]) -> str:
        """Where a cached result was made, as Markdown; also written into `tags`."""
        producer = event.get("producer")
        if event["state"] not in REUSED or not producer:
            return ""
        if producer not in self._producers:
            self._producers[producer] = self.tracker.stage_runs(producer)
        made_in = self._producers[producer].get(event.get("key") or "")
        if made_in is None:
            return f" · made by run {plain(producer)}"
        tags[PRODUCER] = made_in.info.run_id
        return f" · made by {link(producer, made_in.info.experiment_id, made_in.info.run_id)}"

    def copy_reports(self, event: Event, run: str) -> None:
        """Put the reports a stage made beside its run, where people look."""
        for item in event.get("outputs") or []:
            directory = self._local(item.get("uri") or "")
            small = (item.get("bytes") or 0) <= LARGEST_REPORT
            if item["kind"] == "report" and small and directory is not None and directory.is_dir():
                self.tracker.client.log_artifacts(run, str(directory), artifact_path=f"reports/{item['name']}")

    def trace_rollouts(self, stage: StageView, event: Event, run: str, time_ms: int) -> None:
        """Show the rollouts a stage made as traces of its run, which ended at `time_ms`."""
        for item in event.get("outputs") or []:
            directory = self._local(item.get("uri") or "")
            if item.get("schema") == "trajectories" and directory is not None:
                name, output = "/".join((self.uid, stage.attempt_id, item["name"])), f"{stage.name}.{item['name']}"
                source = Source(name, output, self.experiment, run, time_ms)
                log_rollouts(self.tracker.traces, directory, source, self.redactor)

    def _log_outputs(self, run: str, made: Sequence[str]) -> None:
        # MLflow raises on an output it already has, so a repeated call has to look first.
        if not made:
            return
        known = self.tracker.client.get_run(run).outputs
        there = {model.model_id for model in known.model_outputs} if known is not None else set()
        if missing := [LoggedModelOutput(model, 0) for model in made if model not in there]:
            self.tracker.client.log_outputs(run, missing)

    def _dataset(self, item: Mapping[str, Any], name: str, context: str) -> DatasetInput:
        uri = self.redactor.text(item.get("uri") or "")
        dataset = Dataset(
            name=cut(name, 500),
            digest=item["digest"][:DIGEST_LENGTH],
            source_type=urlsplit(uri).scheme or "local",
            source=json.dumps({"uri": uri}),
            profile=json.dumps({name: item[name] for name in ("schema", "bytes") if item.get(name) is not None}),
        )
        tags = {"mlflow.data.context": context, "regraft.digest": item["digest"], "regraft.name": item["name"]}
        return DatasetInput(dataset, [InputTag(key, cut(value, PARAM_LENGTH)) for key, value in tags.items()])

    def _model_in(self, item: Mapping[str, Any]) -> str:
        found = self.models.get(item["digest"]) or self._find(item["digest"], item.get("producer"))
        return found or self._create(item["stage"], item["output"], item, source=None, params={})

    def _model_out(self, stage: StageView, event: Event, item: Mapping[str, Any], run: str) -> str:
        """A result taken from the cache is the producer's model; fresh work makes a model of its own."""
        known = self.models.get(item["digest"])
        if event["state"] in REUSED and (found := known or self._find(item["digest"], event.get("producer"))):
            return found
        return self._create(stage.name, item["name"], item, source=run, params=stage_params(stage, self.redactor))

    def _find(self, digest: str, producer: str | None) -> str | None:
        """The model of this content that run `producer` made; the newest when that one is not known."""
        if found := self.tracker.models("regraft.digest", digest):
            made = [model for model in found if model.tags.get("regraft.run") == producer]
            self.models[digest] = (made or found)[-1].model_id
        return self.models.get(digest)

    def _create(
        self, stage: str, output: str, item: Mapping[str, Any], *, source: str | None, params: dict[str, str]
    ) -> str:
        tags = {
            "regraft.uid": self.uid,
            "regraft.run": self.run,
            "regraft.stage": stage,
            "regraft.output": output,
            "regraft.digest": item["digest"],
            "regraft.uri": item.get("uri") or "",
            "regraft.bytes": item.get("bytes") or "",
        }
        model = self.own.get(_made_by(tags))
        if model is None:
            model = self.tracker.client.create_logged_model(
                self.experiment,
                name=_model_name(stage, output),
                source_run_id=source,
                tags=texts(self.redactor.tree(tags), PARAM_LENGTH),
                params=params,
                model_type="regraft",
            ).model_id
            self.own[_made_by(tags)] = model
        self.tracker.client.finalize_logged_model(model, "READY")
        self.models[item["digest"]] = model
        return model

    def _local(self, uri: str) -> Path | None:
        parts = urlsplit(uri)
        return self.store / parts.path if uri and parts.scheme in ("", "file") else None


def _is_data(item: Mapping[str, Any]) -> bool:
    return item["kind"] == "dataset"


def _made_by(tags: Mapping[str, Any]) -> str:
    return f"{tags.get('regraft.stage')}\0{tags.get('regraft.output')}\0{tags.get('regraft.digest')}"


def _model_name(stage: str, output: str) -> str:
    name = stage if output in ("model", "") else f"{stage}-{output}"
    return cut("".join("-" if c in "/:.%\"'" else c for c in name), 250)
