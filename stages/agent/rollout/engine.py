"""Engines that write turns: the interface, and what a request and its result are. Imports nothing heavy.

A request carries the whole conversation so far as token ids. What an engine remembers of it under the request's key is
its own affair: nothing but time depends on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token, and then log-probabilities are those of temperature 1."""
    top_p: float = 1.0
    """Draw from the fewest tokens that have this much probability together."""


@dataclass(frozen=True)
class Request:
    """One turn to write."""

    key: int
    """The rollout it belongs to; its later requests begin with the ids of this one and what was written."""
    ids: Sequence[int]
    """The conversation so far, at least one token."""
    seed: int
    """Of this turn's random numbers, in [0, 2^63): equal seeds draw alike in whatever company."""
    max_tokens: int
    """Tokens to write at most, the stop token included; at least 1."""


@dataclass(frozen=True)
class Written:
    """A turn as it was sampled: its ids, the stop token included if it came, and their log-probabilities in nats.

    Those are of the whole distribution at the sampling temperature, before `top_p` cut it.
    """

    ids: list[int]
    logp: list[float]
    stopped: bool
    """Whether it ends with the stop token; otherwise `max_tokens` cut it off."""


class Engine(ABC):
    """Writes turns with one policy."""

    @abstractmethod
    def write(self, requests: Sequence[Request]) -> list[Written]:
        """Write the turns asked for, in the order of the requests; keys are distinct."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what is remembered of every key: the rollouts are over, or the policy's weights have changed."""
