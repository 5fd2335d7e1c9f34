"""The contract between the engine and the work.

A stage is a class: what it is told (`Params`), what it reads (`inputs`), what it makes (`outputs`), and `run`. It sees
artifacts, its parameters and a `Context`; it never sees the store, MLflow or the scheduler. The engine imports this
module, and every stage's module, to plan: neither may import torch, ray or mlflow at the top. Heavy imports belong in
`run` or in the modules that `run` imports.

A parameter belongs to the stage's identity unless it is marked `EXECUTION` (how the work is done: it cannot change the
result beyond rounding) or `COSMETIC` (what people see). Only identity enters the cache key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from stages.artifacts import Artifact, Dataset, Model, Report, Schema

EXECUTION: Final = Field(json_schema_extra={"x-identity": "execution"})
"""Marks a parameter that says how the work is done: `micro_batch: Annotated[int, Field(ge=1), EXECUTION] = 4`."""

COSMETIC: Final = Field(json_schema_extra={"x-identity": "cosmetic"})
"""Marks a parameter that only changes what people see, such as a label."""


Progress = Callable[[float, float, str], None]
"""Called as `progress(done, total, "tokens")`; `Context.progress` fits."""


class Parameters(BaseModel):
    """Base of every stage's parameters: frozen, unknown keys refused, no infinities, a docstring under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def identity_class(cls, name: str) -> str:
        """`identity`, `execution` or `cosmetic`, for the field `name`."""
        extra = cls.model_fields[name].json_schema_extra
        return str(extra.get("x-identity", "identity")) if isinstance(extra, dict) else "identity"

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, as plain JSON values with defaults filled in."""
        names = {name for name in type(self).model_fields if self.identity_class(name) == "identity"}
        return self.model_dump(mode="json", include=names)

    def replaced(self, **changes: Any) -> Self:
        """A copy with `changes`, checked like any other. Raises pydantic's ValidationError."""
        return type(self).model_validate({**self.model_dump(), **changes})

    def smoke(self) -> Self:
        """The same work at a size that takes seconds on a generated model of two layers, for `regraft run --smoke`.

        Override it wherever the defaults are not that small. What is read and made stays the same kind.
        """
        return self

    def smaller(self, workers: int) -> Self | None:  # noqa: ARG002, who overrides it may need it
        """The same work in less memory, or None when there is no way: tried when `workers` run out of memory.

        Only execution fields may change, so that the result stays the same. This one halves `batch_size`, where that
        is an execution field.
        """
        batch_size = getattr(self, "batch_size", 1)
        if batch_size == 1 or self.identity_class("batch_size") != "execution":
            return None
        return self.replaced(batch_size=batch_size // 2)


@dataclass(frozen=True)
class Input:
    """What a stage reads under one name. `schema` narrows a Dataset; `many` takes a list (the arms of a matrix)."""

    kind: type[Artifact]
    schema: Schema | None = None
    optional: bool = False
    many: bool = False


@dataclass(frozen=True)
class Output:
    """What a stage makes under one name. The first output is the one meant when only the stage is named."""

    kind: type[Artifact]
    schema: Schema | None = None


@dataclass(frozen=True)
class Resources:
    """What a stage asks of the cluster, for each of its workers. Never part of its identity."""

    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    memory_bytes: int = 0
    """Memory the scheduler sets aside; 0 asks for none in particular."""


@dataclass
class Context:
    """What the engine gives to `run`: inputs, places to write, and ways to tell how it goes."""

    inputs: Mapping[str, Any]
    """An Artifact for each input given; a list of them where the input is `many`."""
    out: Path
    """Parent of the output directories; use `output`."""
    scratch: Path
    """Survives retries and restarts of the same identity, and no other: training resumes from here."""
    seed: int = 0
    resources: Resources = field(default_factory=Resources)
    emit: Callable[[dict[str, Any]], None] = lambda _: None
    """Where events go; stages use the methods below."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the run is being cancelled. A long stage asks now and then, saves to `scratch`, raises StoppedError."""
    results: dict[str, float] = field(default_factory=dict)
    """Final metrics so far, see `metrics`."""

    def model(self, name: str) -> Model:
        """The Model given as input `name`."""
        return self._one(name, Model)

    def dataset(self, name: str) -> Dataset:
        """The Dataset given as input `name`."""
        return self._one(name, Dataset)

    def report(self, name: str) -> Report:
        """The Report given as input `name`."""
        return self._one(name, Report)

    def output(self, name: str) -> Path:
        """The directory to write output `name` into; made on first use."""
        directory = self.out / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def progress(self, done: float, total: float, unit: str) -> None:
        """Tell how far the work is: `progress(12_000, 200_000, "tokens")`."""
        self.emit({"event": "progress", "done": done, "total": total, "unit": unit})

    def log(self, step: int, **values: float) -> None:
        """Record one point of each named curve at `step`."""
        self.emit({"event": "curve", "step": step, "values": {name: float(value) for name, value in values.items()}})

    def metrics(self, **values: float) -> None:
        """Record final figures of the stage: they are kept with the artifact, shown in tables and gated by `expect`."""
        self.results.update({name: float(value) for name, value in values.items()})

    def say(self, message: str) -> None:
        """One line for the person who watches, such as a decision taken."""
        self.emit({"event": "message", "text": message})

    def _one(self, name: str, kind: type[AnyArtifact]) -> AnyArtifact:
        artifact = self.inputs[name]
        assert isinstance(artifact, kind), f"input {name} is a {type(artifact).__name__}, declared a {kind.__name__}"
        return artifact


AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)
Source = Path | str
"""Something outside the store: a path counts by its content, a pinned version counts as written."""


class Stage(ABC):
    """One node of a pipeline. Subclass it, declare the four class attributes, write `run`.

    The class docstring is its documentation (`regraft methods NAME`): what it does and which paper it follows.
    """

    Params: ClassVar[type[Parameters]] = Parameters
    inputs: ClassVar[Mapping[str, Input]] = {}
    outputs: ClassVar[Mapping[str, Output]] = {}
    requires: ClassVar[Mapping[str, str]] = {}
    """Modules that must be importable, and the extra that brings each: `{"compressed_tensors": "quantize"}`."""
    distributed: ClassVar[bool] = False
    """Whether `resources.workers` may be more than one."""
    isolated: ClassVar[bool] = False
    """Whether the process that ran the stage ends with it (a stage that trains leaves global state behind)."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names of the figures it reports (globs allowed): a gate on another one is refused before the run. Empty: any."""
    paper: ClassVar[str] = ""
    """arXiv id of the method's source, where it has one."""

    def __init__(self, params: Any) -> None:
        self.params = params

    def sources(self) -> Mapping[str, Source]:
        """What the parameters point at outside the store, by name: part of the key. Raises UserError if missing."""
        return {}

    def preflight(self) -> None:
        """Cheap checks of parameters and machine before any stage runs. Raises UserError. Imports nothing heavy."""

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Checks of the inputs against each other, when they exist and before any compute. Raises UserError."""

    @abstractmethod
    def run(self, context: Context) -> None:
        """Do the work: read `context.inputs`, fill every output directory."""
