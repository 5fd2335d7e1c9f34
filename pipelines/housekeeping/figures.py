"""What was measured of exactly one content: the evaluations of a model, wherever in the store they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

from pipelines.housekeeping.ancestry import changed_params
from pipelines.housekeeping.catalogue import Catalogue, Made, began
from pipelines.planning.canonical import canonical
from pipelines.report.models import ASIDE, DISTANCES, FACTS, measured
from pipelines.store import Manifest


@dataclass(frozen=True)
class Measured:
    """The figures of one evaluation."""

    manifest: Manifest
    metrics: Mapping[str, float]
    told: Mapping[str, object]
    """The parameters of the evaluation that are not its defaults."""
    on: tuple[str, ...]
    """What else it read: data, and the models it compares with."""


def measured_of(catalogue: Catalogue, made: Made) -> list[Measured]:
    """Every evaluation of this model, oldest first; of those made alike, the newest. First what its maker measured."""
    found = {}
    for manifest in sorted([*catalogue.manifests.values(), *catalogue.removed.values()], key=began):
        others = _others(catalogue, manifest, made.record.digest)
        metrics = _own(manifest.metrics)
        if others is not None and metrics:
            on = tuple(_on(catalogue, manifest, digest) for _, digest in others)
            told = changed_params(manifest.method, manifest.identity.get("params", {}))
            protocol = canonical([manifest.method, manifest.identity.get("params", {}), [d for _, d in others]])
            found[protocol] = Measured(manifest, metrics, told, on)
    distances = {name: value for name, value in made.manifest.metrics.items() if name in DISTANCES}
    own = [Measured(made.manifest, distances, {}, _when_made(catalogue, made.manifest))] if distances else []
    return own + list(found.values())


def _others(catalogue: Catalogue, manifest: Manifest, digest: str) -> list[tuple[str, str]] | None:
    """Name and digest of what an evaluation of the model `digest` read besides it; None when it is no such thing."""
    if any(output.kind != "report" for output in manifest.outputs.values()):
        return None
    read = [(name, one) for name, digests in manifest.identity.get("inputs", {}).items() for one in digests]
    subject = measured([entry for entry in read if _kind(catalogue, entry[1]) == "model"], itemgetter(0))
    return [entry for entry in read if entry != subject] if subject and subject[1] == digest else None


def _own(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what is about another model, a part of the data, or how it was measured."""
    return {name: value for name, value in metrics.items() if name not in FACTS and not ASIDE.search(name)}


def _kind(catalogue: Catalogue, digest: str) -> str:
    return next((made.record.kind for made in catalogue.by_digest.get(digest, [])), "")


def _when_made(catalogue: Catalogue, manifest: Manifest) -> tuple[str, ...]:
    """What a model was measured on and against when it was made: its held-out text, and what it was made of."""
    inputs = manifest.identity.get("inputs", {})
    read = [(name, digest) for name, digests in inputs.items() for digest in digests]
    used = [digest for name, digest in read if name == "heldout" or _kind(catalogue, digest) == "model"]
    return tuple(_on(catalogue, manifest, digest) for digest in used)


def _on(catalogue: Catalogue, reader: Manifest, digest: str) -> str:
    """`corpus.heldout bd81c4cb`; for a model, `against teacher.model f5129e15`."""
    maker = catalogue.maker(digest, reader)
    name = f"{maker.name} {digest[:8]}" if maker else digest[:8]
    return f"against {name}" if _kind(catalogue, digest) == "model" else name


def facts_of(catalogue: Catalogue, made: Made) -> Iterator[tuple[str, float]]:
    """Parameters, as whoever counted them says; bytes of the weights."""
    reports = [made.manifest, *(found.manifest for found in measured_of(catalogue, made))]
    counted = next((report.metrics["parameters"] for report in reports if "parameters" in report.metrics), None)
    if counted is not None:
        yield "parameters", counted
    weights = sum(file.size for file in made.record.files if file.path.endswith(".safetensors"))
    if weights:
        yield "bytes", weights
