"""The rollouts of a stage as MLflow traces: one a trajectory, with a span for each turn and each tool call.

They are read from the published dataset, so a stage knows nothing of it. Every id follows from the run, the stage's
attempt, the output and the row: to write a trace again is to write the same one. The dataset does not say when a turn
was written, so all spans stand at the stage's end, in order, and take no time.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from mlflow.entities import Feedback, Span, SpanType, TraceInfo, TraceLocation, TraceState
from mlflow.exceptions import MlflowNotImplementedException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey, TraceTagKey

from pipelines.lineage.records import cut
from pipelines.lineage.redact import Redactor
from stages.agent.conversation.messages import FAULTS, Message, Trajectory, parse_turn
from stages.agent.conversation.records import sample_trajectories
from stages.artifacts import Dataset
from stages.errors import UserError

MOST_TRACES: Final = 50
"""Of a dataset, evenly spread over its rows: the first rollouts of a training tell nothing of its last."""
MOST_CHARACTERS: Final = 10_000
"""Of one message; the dataset has all of it."""
MOST_PREVIEW: Final = 500
"""Characters of question and answer in MLflow's table of traces."""


@dataclass(frozen=True)
class Source:
    """Where trajectories come from, in MLflow's terms."""

    name: str
    """What nobody else's traces are named by: run, attempt and output."""
    output: str
    """`stage.output`."""
    experiment: str
    run: str
    """The MLflow run of the stage."""
    time_ms: int
    """When the stage ended."""


def log_rollouts(client: TracingClient, directory: Path, source: Source, redactor: Redactor) -> None:
    """Write a sample of the trajectories in `directory` as traces of the stage's run. May be repeated.

    Nothing happens where the dataset is gone or damaged, or the server keeps no spans (MLflow before 3.4).
    """
    try:
        found = sample_trajectories(Dataset(directory), MOST_TRACES)
    except (OSError, UserError):
        return
    for row, trajectory in found:
        trace = _Trace(source, row, trajectory, redactor)
        try:
            client.log_spans(source.experiment, trace.spans())
        except (NotImplementedError, MlflowNotImplementedException):
            return
        client.start_trace(trace.info())


@dataclass(frozen=True)
class _Trace:
    """One trajectory on its way to MLflow."""

    source: Source
    row: int
    trajectory: Trajectory
    redactor: Redactor

    def info(self) -> TraceInfo:
        """What stands in the table of traces: the reward is a feedback, so that it can be sorted by and averaged."""
        found, told = self.trajectory, self.redactor.text
        return TraceInfo(
            trace_id=f"tr-{self._id.hex()}",
            trace_location=TraceLocation.from_experiment_id(self.source.experiment),
            request_time=self.source.time_ms,
            state=TraceState.OK,
            request_preview=cut(told(found.question), MOST_PREVIEW),
            response_preview=cut(told(found.answer or f"no answer ({found.ending or 'unfinished'})"), MOST_PREVIEW),
            execution_duration=0,
            trace_metadata={TraceMetadataKey.SOURCE_RUN: self.source.run},
            tags={
                TraceTagKey.TRACE_NAME: self.source.output,
                "regraft.output": self.source.output,
                "regraft.row": str(self.row),
                "regraft.task": cut(told(found.task), MOST_PREVIEW),
                "regraft.kind": cut(told(found.kind), MOST_PREVIEW),
                "regraft.ending": found.ending,
            },
            assessments=[self._reward()],
        )

    def spans(self) -> list[Span]:
        """The whole rollout, then its turns, each followed by the tool it called."""
        found = self.trajectory
        asked = {"task": found.task, "question": found.question, "answers": list(found.answers), "kind": found.kind}
        gave = {"answer": found.answer, "reward": found.reward, "ending": found.ending}
        steps = [(self.source.output, SpanType.AGENT, asked, gave, ""), *self._steps()]
        return [self._span(number, *step) for number, step in enumerate(steps)]

    def _steps(self) -> Iterator[tuple[str, str, Any, Any, str]]:
        """Name, kind, inputs, outputs and what was wrong ("": nothing) of each turn and tool call."""
        heard: list[dict[str, str]] = []
        for message, after in pairwise([*self.trajectory.messages, Message("user", "")]):
            if message.role != "assistant":
                heard.append(message.record())
                continue
            turn = parse_turn(message.content)
            fault = FAULTS[turn.fault] if turn.fault else ""
            yield "turn", SpanType.LLM, {"messages": heard}, message.record(), fault
            heard = []
            if turn.call and after.role == "tool":
                problem = after.content if after.content.startswith("Error: ") else ""
                yield turn.call.name, SpanType.TOOL, dict(turn.call.arguments), after.content, problem

    def _span(self, number: int, name: str, kind: str, inputs: Any, outputs: Any, problem: str) -> Span:
        now_ns = self.source.time_ms * 1_000_000 + number
        attributes = {
            SpanAttributeKey.REQUEST_ID: f"tr-{self._id.hex()}",
            SpanAttributeKey.SPAN_TYPE: kind,
            SpanAttributeKey.INPUTS: _shortened(self.redactor.tree(inputs)),
            SpanAttributeKey.OUTPUTS: _shortened(self.redactor.tree(outputs)),
        }
        return Span.from_dict(
            {
                "trace_id": _encoded(self._id),
                "span_id": _encoded(self._digest(str(number))[:8]),
                "parent_span_id": _encoded(self._digest("0")[:8]) if number else None,
                "name": cut(self.redactor.text(name), MOST_PREVIEW),
                "start_time_unix_nano": now_ns,
                "end_time_unix_nano": now_ns,
                "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()},
                "status": {
                    "code": "STATUS_CODE_ERROR" if problem else "STATUS_CODE_OK",
                    "message": cut(self.redactor.text(problem), MOST_PREVIEW),
                },
                "events": [],
            }
        )

    def _reward(self) -> Feedback:
        now = self.source.time_ms
        found = Feedback("reward", self.trajectory.reward, create_time_ms=now, last_update_time_ms=now)
        found.assessment_id = f"a-{self._digest('reward')[:16].hex()}"
        return found

    @property
    def _id(self) -> bytes:
        return self._digest()[:16]

    def _digest(self, *parts: str) -> bytes:
        return hashlib.sha256("\0".join([self.source.name, str(self.row), *parts]).encode()).digest()


def _shortened(value: Any) -> Any:
    """A JSON value whose texts are cut to what can be read on a page."""
    if isinstance(value, Mapping):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value]
    return cut(value, MOST_CHARACTERS) if isinstance(value, str) else value


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()
