"""Timing a causal language model: one prefill of a prompt, then greedy decoding with its cache."""

from __future__ import annotations

import gc
import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.evaluate.memory import PeakTensorBytes, cache_bytes, parameter_bytes

CACHES = ("past_key_values", "cache_params")
"""Names under which models give and take their cache: attention and hybrids, then pure state-space models."""


@dataclass(frozen=True)
class Sample:
    """One measurement at one context length; seconds."""

    prefill: float
    """The forward pass over the prompt, which fills the cache."""
    first_token: float
    """From the prompt to the first token on the host: prefill, and the choice."""
    decode: float
    """All decoding steps after it."""
    num_decoded: int
    """Tokens of those steps, over the whole batch."""

    @property
    def decode_rate(self) -> float:
        """Decoded tokens a second."""
        return self.num_decoded / self.decode


@dataclass(frozen=True)
class Footprint:
    """Bytes at one context length."""

    cache: int
    """Tensors in the cache after the prompt."""
    peak: int
    """Weights, and the most bytes of other tensors alive at once during prefill and a decoding step."""


@dataclass
class Session:
    """A model with the cache of one batch of prompts."""

    model: nn.Module
    cache: Any = None
    _name: str = field(default="", repr=False)

    def prefill(self, ids_BT: Tensor) -> Tensor:
        """Read the prompts into a new cache; logits [B, V] for the token after them."""
        options = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(self.model) else {}
        return self._run(ids_BT, options)

    def step(self, ids_B1: Tensor) -> Tensor:
        """Read one more token; logits [B, V] for the next."""
        return self._run(ids_B1, {self._name: self.cache})

    def _run(self, ids_BT: Tensor, options: dict[str, Any]) -> Tensor:
        output = self.model(input_ids=ids_BT, use_cache=True, **options)
        self._name = next((name for name in CACHES if getattr(output, name, None) is not None), "")
        if not self._name:
            raise UserError(
                f"{type(self.model).__name__} returns no cache ({' or '.join(CACHES)})",
                fix="decoding is timed with a cache; a model without one cannot be timed here",
            )
        self.cache = getattr(output, self._name)
        return output.logits[:, -1]


class Laps:
    """Marks moments in the work of a device and tells the seconds between them."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """This moment."""
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds from each mark to the next."""
        return [after - before for before, after in pairwise(self._marks)]


class CudaLaps(Laps):
    """The same with CUDA events, which the device itself stamps."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """The moment when the device gets here."""
        self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[-1].record()

    def seconds(self) -> list[float]:
        """Seconds from each mark to the next, once the device has passed the last."""
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self._events)]


@torch.no_grad()
def sample(model: nn.Module, ids_BT: Tensor, decode_tokens: int) -> Sample:
    """Time the prompts `ids_BT`, then `decode_tokens` steps of greedy decoding. The caller warms up."""
    gc.collect()
    session, laps = Session(model), CudaLaps() if ids_BT.is_cuda else Laps()
    laps.mark()
    logits_BV = session.prefill(ids_BT)
    laps.mark()
    ids_B1 = logits_BV.argmax(-1, keepdim=True)
    ids_B1.tolist()
    laps.mark()
    for _ in range(decode_tokens):
        ids_B1 = session.step(ids_B1).argmax(-1, keepdim=True)
    laps.mark()
    prefill, choice, decode = laps.seconds()
    return Sample(prefill, prefill + choice, decode, decode_tokens * ids_BT.shape[0])


@torch.no_grad()
def footprint(model: nn.Module, ids_BT: Tensor) -> Footprint:
    """Bytes that the prompts `ids_BT` and one decoding step take; slow, and untimed, so it serves as warm-up too."""
    session = Session(model)
    with PeakTensorBytes() as counter:
        logits_BV = session.prefill(ids_BT)
        held = cache_bytes(session.cache)
        session.step(logits_BV.argmax(-1, keepdim=True))
    return Footprint(cache=held, peak=parameter_bytes(model) + counter.peak)


def alternate(
    models: Sequence[nn.Module], ids_BT: Tensor, decode_tokens: int, repetitions: int, turned: Callable[[], None]
) -> list[list[Sample]]:
    """`repetitions` samples of each model, in turns, each turn in the opposite order of the one before, and told of."""
    samples: list[list[Sample]] = [[] for _ in models]
    for turn in range(repetitions):
        order = range(len(models)) if turn % 2 == 0 else reversed(range(len(models)))
        for index in order:
            samples[index].append(sample(models[index], ids_BT, decode_tokens))
        turned()
    return samples


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _arguments(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
