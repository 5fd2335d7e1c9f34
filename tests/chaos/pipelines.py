"""What is disturbed: a pipeline of quick stages, and one that really trains, quantises and evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Subject:
    """A pipeline, and the stage in it that saves its progress step by step."""

    name: str
    text: str
    trains: str


QUICK: Final = Subject(
    "quick",
    """\
name: quick
stages:
  first: {uses: "tests.toy:Write", with: {text: abc}}
  left: {uses: "tests.chaos.stages:Steps", inputs: {text: first}, with: {count: 6}}
  train: {uses: "tests.chaos.stages:Steps", inputs: {text: left}, with: {count: 15}, retries: RETRIES}
  right: {uses: "tests.toy:Copy", inputs: {text: first}, retries: RETRIES}
  join: {uses: "tests.toy:Join", inputs: {texts: [left, right], last: train}}
  last: {uses: "tests.toy:Copy", inputs: {text: join}, with: {mark: "!"}}
""",
    "train",
)
REAL: Final = Subject(
    "real",
    """\
name: real
stages:
  model: {uses: source.model, with: {model: "generated:llama"}}
  text: {uses: source.dataset, with: {dataset: "generated:text"}}
  corpus: {uses: data.prepare, inputs: {text: text, model: model}, with: {sequence_length: 32, heldout_fraction: 0.2}}
  train:
    uses: distill.logits
    inputs: {teacher: model, data: corpus.train, heldout: corpus.heldout}
    with:
      {tokens: 2048, batch_sequences: 4, micro_batch: 2, depth_fraction: 0.5, precision: fp32, checkpoint_minutes: 0}
    resources: {workers: WORKERS, cpus: 0.5}
    retries: RETRIES
  int4: {uses: quantize.rtn, inputs: {model: train, heldout: corpus.heldout}, with: {bits: 4, group_size: 16}}
  perplexity: {uses: evaluate.perplexity, inputs: {model: int4, data: corpus.heldout}}
""",
    "train",
)
SUBJECTS: Final = {subject.name: subject for subject in (QUICK, REAL)}
