"""Artifacts: the immutable results that stages hand to each other.

A *Model* is a Hugging Face directory, a *Dataset* is parquet shards beside a `dataset.json` that declares their schema,
a *Report* is a `report.json` beside its figures. A handle knows its directory and its content digest, never the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar

from stages.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Schema = Literal["text", "tokens", "messages", "trajectories"]

DATASET_COLUMNS: Final[Mapping[Schema, Mapping[str, str]]] = {
    "text": {"text": "string"},
    "tokens": {"input_ids": "list<int32>"},
    "messages": {"messages": "list<struct<role: string, content: string>>"},
    "trajectories": {"trajectory": "list<struct<role: string, content: string>>", "reward": "double"},
}
"""The columns a dataset of each schema has at least; more may follow."""


@dataclass(frozen=True)
class Artifact:
    """A directory of files with the digest of its content (SHA-256, hex; empty while it is not published)."""

    path: Path
    digest: str = ""
    name: str = ""

    kind: ClassVar[str] = "artifact"

    @property
    def short_name(self) -> str:
        """What people call it: the arm of a matrix by its values (`branch[domain=law]` as `law`), else the stage."""
        return arm_values(self.name) or self.name


@dataclass(frozen=True)
class Model(Artifact):
    """A Hugging Face model directory: `config.json`, safetensors shards and, nearly always, a tokenizer."""

    kind: ClassVar[str] = "model"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`; raises UserError when the directory is no model."""
        return read_json(self.path / "config.json", "a model directory has a config.json")

    @property
    def grafts(self) -> list[dict[str, Any]]:
        """What `config.json` says was put on a pretrained model, in order; empty for a model of a standard class."""
        return self.config.get("grafts", []) if self.config.get("model_type") == "regraft" else []

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Digest of what decides the ids of a text, or "" when the directory holds no tokenizer.json."""
        file = self.path / "tokenizer.json"
        return tokenizer_fingerprint(file) if file.exists() else ""


@dataclass(frozen=True)
class Dataset(Artifact):
    """Parquet shards `shard-*.parquet` and a `dataset.json` (see `DatasetCard`)."""

    kind: ClassVar[str] = "dataset"

    @cached_property
    def card(self) -> DatasetCard:
        """What the dataset declares of itself; raises UserError when `dataset.json` is missing, or another's."""
        return from_fields(DatasetCard, self.path / "dataset.json", "a dataset directory has a dataset.json")

    @property
    def shards(self) -> list[Path]:
        """The parquet files in reading order."""
        return sorted(self.path.glob("shard-*.parquet"))


@dataclass(frozen=True)
class Report(Artifact):
    """`report.json` (title, metrics, details) and the figures it names."""

    kind: ClassVar[str] = "report"

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return read_json(self.path / "report.json", "a report directory has a report.json")

    def detail(self, name: str, lacking: str, *, where: str, fix: str) -> Any:
        """What the details hold as `name`. Raises UserError, in words of `lacking`, for another stage's report."""
        found = self.content.get("details", {}).get(name)
        if found is None:
            raise UserError(f"the report {self.content.get('title')!r} {lacking}", where=where, fix=fix)
        return found


@dataclass(frozen=True)
class DatasetCard:
    """`dataset.json`: the declared schema and counts of a Dataset."""

    schema: Schema
    num_rows: int
    num_bytes: int
    """UTF-8 bytes of the text behind the rows, so that losses can be told in bits per byte."""
    num_tokens: int = 0
    sequence_length: int = 0
    """Tokens in each row of a packed `tokens` dataset; 0 when rows vary."""
    tokenizer: str = ""
    """`tokenizer_fingerprint` of the tokenizer that made the ids; "" for text."""
    licence: str = ""
    source: str = ""
    mixture: Mapping[str, str] = field(default_factory=dict)
    """What a mixture was made by: the share of each dataset, by name, as an exact fraction (`3/10`)."""

    def write(self, directory: Path) -> None:
        """Write `dataset.json` into `directory`."""
        write_json(directory / "dataset.json", self.__dict__)


def arm_values(name: str) -> str:
    """The values by which an arm of a matrix is told apart: `grpo, 0` of `learn[credit=grpo,seed=0]`; "" of a stage."""
    _, bracket, axes = name.partition("[")
    return ", ".join(axis.partition("=")[2] for axis in axes.rstrip("]").split(",")) if bracket else ""


def write_report(directory: Path, title: str, metrics: Mapping[str, float], details: Mapping[str, Any]) -> None:
    """Write `report.json`. Timings do not belong here: a report is content, and equal work must give equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "report.json", {"title": title, "metrics": dict(metrics), "details": dict(details)})


def write_json(file: Path, value: object) -> None:
    """Write `value` as sorted, indented JSON with a final newline: the same value gives the same bytes."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_fingerprint(tokenizer_json: Path) -> str:
    """Digest (16 hex digits) of a `tokenizer.json`, without the padding and truncation state a call leaves there."""
    content = read_json(tokenizer_json, "a tokenizer")
    for state in ("padding", "truncation"):
        content.pop(state, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def from_fields(kind: type[T], file: Path, expected: str) -> T:
    """The dataclass whose fields are in `file`. Raises UserError naming those that it lacks or that nobody knows."""
    found = read_json(file, expected)
    needed = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    lacking, unknown = sorted(needed - found.keys()), sorted(found.keys() - {each.name for each in fields(kind)})
    if lacking or unknown:
        told = [f"{what}: {', '.join(names)}" for what, names in (("lacks", lacking), ("unknown", unknown)) if names]
        raise UserError(
            f"the fields of {file} do not fit ({'; '.join(told)})",
            fix="it was written by another version of regraft, or damaged: make it again",
        )
    return kind(**found)


def read_json(file: Path, expected: str) -> dict[str, Any]:
    """The object in `file`. Raises UserError when it is not there, with what is `expected`, or holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {file.name} in {file.parent}", fix=f"{expected}; check the path") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}", fix="the file is damaged; make it again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{file} holds a {type(content).__name__}, expected an object", fix="the file is damaged; make it again"
        )
    return content
