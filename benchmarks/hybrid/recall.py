"""What a model recalls when only the heads that a strategy keeps see far; nothing is trained."""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.findings import Findings, Measure
from grafts import apply
from grafts.hybrid.graft import HybridHeads
from grafts.hybrid.heads import groups_of
from grafts.hybrid.settings import Softmax
from grafts.loader import load_model
from pipelines.cli.session import RunOptions, run_pipeline
from pipelines.spec.load import load
from pipelines.store import Store, open_store
from pipelines.store.manifest import Manifest
from stages.artifacts import Dataset, Model, Report
from stages.data.windows import TokenWindows
from stages.evaluate.distance import distance, evaluating
from stages.evaluate.long_context_scoring import recall
from stages.evaluate.needles import Probe, make_probe
from stages.evaluate.needles_text import Haystack, Pieces, texts_of
from stages.evaluate.prediction import Predictor

PIPELINE = Path(__file__).with_name("recall.yaml")
KL = Measure("KL to teacher", "less")
FOUND = Measure("needles found", "more")
NATS = Measure("nats/answer", "less")
GROUPS = Measure("KV groups read whole", "less")
DEPTHS = (0.1, 0.5, 0.9)
Kept = tuple[tuple[int, ...] | None, ...]


def measure(options: argparse.Namespace) -> Findings:
    """A row for each strategy and share of heads, a figure for each seed."""
    store = open_store(options.store)
    pipeline = load(PIPELINE, options.set)
    result = run_pipeline(pipeline, store, RunOptions(executor="inline", track=False))
    if not result.ok:
        raise SystemExit("the heads could not be chosen: see above")
    made = result.manifests
    source = Model(store.fetch(made["teacher"], "model"))
    scale = _Scale(options, source, Dataset(store.fetch(made["corpus"], "heldout")), _text(store, made["text"]))
    findings = Findings(f"{pipeline.params['model']}, windows of {options.window} tokens and {options.sinks} sinks")
    num_layers = len(scale.everything)
    findings.add("all heads", "teacher", scale.weigh(scale.everything))
    findings.add("no head", "windows only", scale.weigh(((),) * num_layers))
    arms = _by_arm(made)
    for number, (arm, names) in enumerate(arms.items(), 1):
        print(f"{number} of {len(arms)}: {', '.join(arm)}", file=sys.stderr, flush=True)
        found = [scale.weigh(_kept(Report(store.fetch(made[name], "selection")))) for name in names]
        findings.add(*arm, {each: [figures[each] for figures in found] for each in found[0]})
    return findings


class _Scale:
    """Weighs choices of heads, each once."""

    def __init__(self, options: argparse.Namespace, source: Model, heldout: Dataset, text: Dataset) -> None:
        self.teacher = load_model(source.path, dtype=torch.float32)
        self.window, self.sinks = options.window, options.sinks
        self.readers = self.teacher.config.num_attention_heads // self.teacher.config.num_key_value_heads
        self.everything: Kept = (None,) * self.teacher.config.num_hidden_layers
        self.windows = TokenWindows(heldout, Path(options.store) / "scratch").tensor(options.windows)
        self.probes = list(_probes(options, Pieces(source), text))
        self._known: dict[Kept, dict[Measure, float]] = {}

    def weigh(self, kept: Kept) -> dict[Measure, float]:
        """The figures of the model that keeps `kept`."""
        if kept not in self._known:
            child = self._windowed(kept)
            figures = {KL: distance(self.teacher, child, self.windows).kl, **self._recall(child)}
            self._known[kept] = figures | {GROUPS: self._groups(kept)}
        return self._known[kept]

    def _windowed(self, kept: Kept) -> PreTrainedModel:
        """Heads that are not kept see a window and the first tokens; nothing else about them changes."""
        graft = HybridHeads(
            full_heads=kept,
            others="sliding_window",
            window=self.window,
            sinks=self.sinks,
            softmax=Softmax.teacher(),
            normalise=False,
        )
        return apply(copy.deepcopy(self.teacher), [graft])

    def _groups(self, kept: Kept) -> int:
        every = self.teacher.config.num_key_value_heads
        return sum(every if layer is None else len(groups_of(layer, self.readers)) for layer in kept)

    def _recall(self, child: PreTrainedModel) -> dict[Measure, float]:
        with evaluating(child):
            found = [one for probe in self.probes for one in recall(Predictor(child), [probe])]
        hits = [all(one.hits) for one in found]
        return {FOUND: sum(hits) / len(hits), NATS: sum(one.nats for one in found) / len(found)}


def _probes(options: argparse.Namespace, pieces: Pieces, text: Dataset) -> Iterator[Probe]:
    haystack = Haystack(texts_of(text), pieces, 4 * max(options.lengths))
    for length, depth, number in product(options.lengths, DEPTHS, range(options.probes)):
        yield make_probe("single", length, depth, pieces=pieces, haystack=haystack, seed=f"0/{number}")


def _text(store: Store, manifest: Manifest) -> Dataset:
    (name,) = [output for output in manifest.outputs if output != "report"]
    return Dataset(store.fetch(manifest, name))


def _by_arm(made: Mapping[str, Manifest]) -> dict[tuple[str, str], list[str]]:
    """The selections of each share of heads and strategy, those of all seeds."""
    arms: dict[tuple[str, str], list[str]] = {}
    for name in made:
        if asked := re.fullmatch(r"select\[ratio=(.*),strategy=(.*),seed=.*\]", name):
            arms.setdefault((f"{asked[1]} of the heads", asked[2]), []).append(name)
    return arms


def _kept(selection: Report) -> Kept:
    layers = selection.content["details"]["full_heads"]
    return tuple(None if layer is None else tuple(layer) for layer in layers)
