"""Where an artifact comes from: the walk from weights to data, as plain values that need no store to be read again.

The same values are printed by `regraft lineage`, written into an exported directory as `lineage.json`, and told in its
model card. What the walk has to know of a store it asks the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_jsonable_python

from stages import registry
from stages.errors import UserError

if TYPE_CHECKING:
    from pipelines.housekeeping.catalogue import Catalogue, Made
    from pipelines.store import Manifest

FORMAT: Final = 1


@dataclass(frozen=True)
class Output:
    """One output of a step: kind, content digest (64 hex digits) and bytes."""

    kind: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class Edge:
    """What a step read under one name; `key` and `output` are empty when nobody knows who made it."""

    name: str
    digest: str
    key: str = ""
    output: str = ""


@dataclass(frozen=True)
class Step:
    """One execution of a stage, as its manifest tells."""

    key: str
    method: str
    stage: str
    run: str
    started: float
    """Seconds since the epoch."""
    seconds: float
    seed: int
    params: Mapping[str, Any]
    """The parameters that decide the result."""
    changed: Mapping[str, Any]
    """Those that differ from the method's defaults; all of them where the method is not known here."""
    code: str
    """Digest of the code the method reached."""
    commit: str
    """The git commit that was checked out; with `+` where files differed from it."""
    metrics: Mapping[str, float]
    outputs: Mapping[str, Output]
    inputs: tuple[Edge, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    """What the parameters pointed at outside the store: content digest, or the version as written."""
    declared: Mapping[str, str] = field(default_factory=dict)
    """`source` and `licence`, for what came from outside."""
    drift: Mapping[str, Any] = field(default_factory=dict)
    """Who accepted that the code changed since, when and why."""
    gone: bool = False
    """Whether the bytes were removed and only this is left."""


@dataclass(frozen=True)
class Ancestry:
    """An artifact with all it comes from: `steps` by key, the artifact's own first."""

    key: str
    output: str
    steps: Mapping[str, Step]

    @property
    def step(self) -> Step:
        """The step that made the artifact."""
        return self.steps[self.key]

    @property
    def digest(self) -> str:
        """The content digest of the artifact."""
        return self.step.outputs[self.output].digest

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"format": FORMAT, "key": self.key, "output": self.output, "steps": [*map(asdict, self.steps.values())]}

    @classmethod
    def from_json(cls, content: Any) -> Ancestry:
        """Back from plain values. Raises ValueError for anything else."""
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
            steps = [_step_from(entry) for entry in content["steps"]]
            found = cls(content["key"], content["output"], {step.key: step for step in steps})
            assert found.digest, "no digest"
        except (KeyError, TypeError, AttributeError, AssertionError) as error:
            raise ValueError(f"not a lineage: {type(error).__name__} {error}") from None
        return found

    def of_kind(self, kind: str) -> Iterator[Step]:
        """The steps that made something of `kind`."""
        for step in self.steps.values():
            if any(output.kind == kind for output in step.outputs.values()):
                yield step


def trace(catalogue: Catalogue, made: Made) -> Ancestry:
    """Walk from an artifact to all it comes from, nearest first."""
    steps: dict[str, Step] = {}
    waiting = [made.manifest]
    while waiting:
        manifest = waiting.pop(0)
        if manifest.key in steps:
            continue
        edges, makers = [], []
        for name, digest, maker in inputs_of(catalogue, manifest):
            edges.append(Edge(name, digest, maker.manifest.key if maker else "", maker.output if maker else ""))
            makers += [maker.manifest] if maker else []
        steps[manifest.key] = _step(catalogue, manifest, tuple(edges))
        waiting += makers
    return Ancestry(made.manifest.key, made.output, steps)


def inputs_of(catalogue: Catalogue, manifest: Manifest) -> Iterator[tuple[str, str, Made | None]]:
    """Name, content digest and maker of everything a result was made from."""
    for name, digests in manifest.identity.get("inputs", {}).items():
        for digest in digests:
            yield name, digest, catalogue.maker(digest, manifest)


def _step(catalogue: Catalogue, manifest: Manifest, edges: tuple[Edge, ...]) -> Step:
    identity, evidence = manifest.identity, manifest.evidence
    git = evidence.get("git") or {}
    commit = str(git.get("commit") or "")
    return Step(
        key=manifest.key,
        method=manifest.method,
        stage=manifest.stage,
        run=manifest.run,
        started=float(evidence.get("started") or 0.0),
        seconds=float(evidence.get("seconds") or 0.0),
        seed=int(identity.get("seed") or 0),
        params=dict(identity.get("params", {})),
        changed=changed_params(manifest.method, identity.get("params", {})),
        code=str(identity.get("code", "")),
        commit=f"{commit}+" if commit and git.get("dirty") else commit,
        metrics=dict(manifest.metrics),
        outputs={name: Output(made.kind, made.digest, made.size) for name, made in manifest.outputs.items()},
        inputs=edges,
        sources=dict(identity.get("sources", {})),
        declared=dict(catalogue.about(manifest)),
        drift=dict(catalogue.accepted.get(manifest.key, {})),
        gone=catalogue.gone(manifest),
    )


def changed_params(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `params` that differ from the method's defaults; all of them where the method is not known here."""
    try:
        fields = registry.find(method).Params.model_fields
    except UserError:
        return dict(params)  # the lineage outlives the method's name and its package
    return {
        name: value
        for name, value in params.items()
        if name not in fields
        or fields[name].is_required()
        or to_jsonable_python(fields[name].get_default(call_default_factory=True)) != value
    }


def _step_from(entry: Mapping[str, Any]) -> Step:
    outputs = {name: Output(**output) for name, output in entry["outputs"].items()}
    metrics = {name: float(value) for name, value in entry["metrics"].items()}  # NaN is written as text
    inputs = tuple(Edge(**edge) for edge in entry["inputs"])
    return Step(**{**entry, "outputs": outputs, "inputs": inputs, "metrics": metrics})
