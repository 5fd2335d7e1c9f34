"""Where pairs become trials: both texts are run, and pairs that say nothing about the model are turned away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from stages.evaluate.precision import gives_nan
from stages.transfer.patching import Trial, geometric, score
from stages.transfer.probing import Pair
from stages.transfer.recording import Body, Recording


@dataclass(frozen=True)
class Bench:
    """Records pairs and judges them."""

    body: Body
    decay: float
    """λ of the logit difference."""
    require_correct: bool
    """Whether the model has to give the right answer."""
    least_drop: float
    """How far the logit difference has to fall, where the right answer is required; else it has to change at all."""

    def accepted(self, pairs: Iterator[Pair], wanted: int, attempts: int) -> Iterator[tuple[Pair, Trial] | None]:
        """The first `wanted` pairs that the model passes, with None for each that it fails; `attempts` in all."""
        found = 0
        for pair in islice(pairs, attempts):
            if found == wanted:
                return
            # a wrong answer needs no second text
            clean = self._record(pair, pair.ids)
            trial = self._trial(pair, clean) if self._is_right(pair, clean) or not self.require_correct else None
            passes = trial is not None and self._changes(trial)
            found += passes
            yield (pair, trial) if passes else None

    def trial(self, pair: Pair) -> Trial:
        """Run both texts up to the last position that predicts. Raises UserError when a logit is not a number."""
        return self._trial(pair, self._record(pair, pair.ids))

    def _record(self, pair: Pair, ids: tuple[int, ...]) -> Recording:
        reads = torch.tensor(pair.targets, device=self.body.model.device) - 1
        recording = self.body.record(ids[: pair.targets[-1]], reads)
        if recording.logits.isnan().any():
            raise gives_nan("the model gives NaN", where="model")
        return recording

    def _trial(self, pair: Pair, clean: Recording) -> Trial:
        device, other = self.body.model.device, self._record(pair, pair.other)
        right = torch.tensor([pair.ids[place] for place in pair.targets], device=device)
        wrong = torch.tensor(pair.wrong, device=device) if pair.wrong else _best_but(other.logits, right)
        columns, weights = torch.stack([right, wrong], dim=1), geometric(len(right), self.decay).to(device)
        scores = [score(text.logits.gather(1, columns)[None], weights).item() for text in (clean, other)]
        start = next(place for place, (one, two) in enumerate(zip(pair.ids, pair.other, strict=True)) if one != two)
        reads = torch.tensor(pair.targets, device=device) - 1
        return Trial(clean, other.heads, start, reads, columns, weights, *scores)

    def _is_right(self, pair: Pair, clean: Recording) -> bool:
        return clean.logits.argmax(-1).tolist() == [pair.ids[place] for place in pair.targets]

    def _changes(self, trial: Trial) -> bool:
        return trial.drop >= self.least_drop if self.require_correct else trial.drop != 0


def _best_but(logits_PV: Tensor, excluded_P: Tensor) -> Tensor:
    return logits_PV.scatter(1, excluded_P[:, None], float("-inf")).argmax(-1)
