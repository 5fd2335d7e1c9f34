"""The files that are changed: all that are shipped, and one that uses every feature of the format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import clusters
import pipelines
import stages

Kind = Literal["pipeline", "profile"]

TOY: Final = """\
name: toy
description: all that a pipeline file can hold
seed: 3
params: {text: abc, times: 2, names: [a, b], rate: 1e-4}
stages:
  a: &a
    uses: tests.toy:Write
    with: {text: "${params.text} and more", repeat: "${params.times}", scale: "${params.rate}", mode: loud}
    resources: &small {cpus: 0.5, memory: 1GiB}
  again:
    <<: *a
    with: {label: "again, ${params.names}"}
  c:
    uses: tests.toy:Write
    matrix: {repeat: [1, 2], seed: [0, 1], scale: ["${params.rate}", 0.5]}
  sweep:
    uses: tests.toy:Copy
    matrix: {of: [a, b]}
    inputs: {text: "${matrix.of}"}
    with: {mark: "-${matrix.of}"}
  b:
    uses: tests.toy:Copy
    inputs: {text: a.text}
    needs: [c, again]
    retries: 2
    timeout: 1h30m
    resources: {<<: *small, gpus: 0, workers: 1}
    expect: {length: ">= 0.5 * ${a.length}"}
  d: {uses: "tests.toy:Join", inputs: {texts: [c, 'sweep[of=a].text'], last: b}}
  e:
    uses: tests.toy:Fail
    needs: d
    with:
      how: nothing
      until_attempt: 0x10
"""


@dataclass(frozen=True)
class Original:
    """A file before anything happened to it."""

    name: str
    kind: Kind
    text: str
    weight: int


def originals() -> list[Original]:
    """Every shipped YAML file and the toy; pipelines weigh more than files that are none."""
    shipped = [*_below(pipelines, "*.yaml", "pipeline", 10), *_below(clusters, "*.yaml", "profile", 2)]
    return [Original("toy.yaml", "pipeline", TOY, 30), *shipped, *_below(stages, "**/*.yaml", "pipeline", 1)]


def _below(package: object, pattern: str, kind: Kind, weight: int) -> list[Original]:
    root = Path(str(package.__file__)).parent  # type: ignore[attr-defined]
    return [Original(file.name, kind, file.read_text(), weight) for file in sorted(root.glob(pattern))]
