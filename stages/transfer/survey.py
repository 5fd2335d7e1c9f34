"""One capability's pairs put to a model: which heads its answers rest on, and which heads those rest on.

Round 0 measures received effects. The heads whose mean effect exceeds the threshold are then listened to: round 1
measures what every head sends to them, and round 2 what every head sends to the ones found in round 1 (arXiv
2606.20097, appendix C.1). The paper finds that two rounds are enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.transfer.bench import Bench
from stages.transfer.patching import Effects, Trial
from stages.transfer.probing import Pair


@dataclass
class Survey:
    """What one method finds, pair by pair and round by round."""

    method: Effects
    threshold: float
    path: list[Tensor] = field(default_factory=list)
    """Masks [L, H] of the heads listened to, those nearest to the logits last."""
    _rounds: list[defaultdict[str, list[Tensor]]] = field(default_factory=lambda: [defaultdict(list)])

    def observe(self, probe: str, trial: Trial) -> None:
        """Measure a trial of the sub-probe `probe` in the present round."""
        effects_LH = self.method.sent(trial, self.path) if self.path else self.method.received(trial)
        self._rounds[-1][probe].append(effects_LH)

    def step_back(self) -> bool:
        """Begin a round that listens to the heads which matter in this one; False when there are none."""
        mattering_LH = self.effects[-1].mean(0) > self.threshold
        if not mattering_LH.any():
            return False
        self.path = [mattering_LH, *self.path]
        self._rounds.append(defaultdict(list))
        return True

    @property
    def effects(self) -> list[Tensor]:
        """For each round the mean effects by sub-probe [S, L, H]."""
        return [
            torch.stack([torch.stack(by_pair).mean(0) for by_pair in by_probe.values()]) for by_probe in self._rounds
        ]


@dataclass
class Inquiry:
    """A capability's pairs, put to the model for every survey at once."""

    bench: Bench
    surveys: Mapping[str, Survey]
    progress: Callable[[], None]
    """Called for each pair that passed and is measured."""
    used: dict[str, list[Pair]] = field(default_factory=dict)
    """Pairs that count, by sub-probe."""
    dropped: dict[str, int] = field(default_factory=dict)
    """How many the model failed, by sub-probe."""

    def first_round(self, probe: str, pairs: Iterator[Pair], wanted: int, attempts: int) -> None:
        """Put up to `attempts` pairs of the sub-probe to the model, until `wanted` of them pass."""
        passed, self.dropped[probe] = [], 0
        for accepted in self.bench.accepted(pairs, wanted, attempts):
            if accepted is None:
                self.dropped[probe] += 1
                continue
            self._observe(self.surveys.values(), probe, accepted[1])
            passed.append(accepted[0])
        if passed:
            self.used[probe] = passed

    def next_round(self) -> None:
        """Put the pairs that passed to the model again, listening to the heads that mattered last."""
        listening = [survey for survey in self.surveys.values() if survey.step_back()]
        for probe, pair in [(probe, pair) for probe, pairs in self.used.items() for pair in pairs if listening]:
            self._observe(listening, probe, self.bench.trial(pair))

    def _observe(self, surveys: Iterable[Survey], probe: str, trial: Trial) -> None:
        for survey in surveys:
            survey.observe(probe, trial)
        self.progress()
