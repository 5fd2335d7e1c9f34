"""Collecting experience: rollouts of a step's questions, scores of the true answer, the reference's opinion."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch
import torch.distributed
from transformers import PreTrainedModel

from stages.agent.conversation.rendering import Renderer
from stages.agent.environment.base import Environment, Runner, Task
from stages.agent.rl.batch import padded, positions_of
from stages.agent.rl.experience import Experience
from stages.agent.rl.log_probs import policy_log_probs
from stages.agent.rl.scoring import Answer, score
from stages.agent.rollout.rollouts import Rollout, roll_out, succeeds
from stages.agent.rollout.transformers_engine import TransformersEngine
from stages.evaluate.distance import evaluating
from stages.seeds import derived_seed
from stages.training.order import global_batch, worker_share
from stages.training.recipe import Worker

if TYPE_CHECKING:
    from stages.agent.rl.settings import PolicyParameters


@dataclass
class Collector:
    """Collects for a run: what it finds is a function of the weights, the seed and the number of the set."""

    environment: Environment
    tasks: Sequence[Task]
    """Those that fit into the window."""
    tools: Runner
    renderer: Renderer
    reference: PreTrainedModel | None
    params: PolicyParameters
    seed: int
    worker: Worker
    seconds: dict[str, float] = field(default_factory=dict)
    """What the latest set took this worker, by phase."""

    def collect(self, policy: PreTrainedModel, number: int) -> list[Experience]:
        """The set `number`, whole and in the same order on every worker; each makes its share of the groups."""
        self.seconds = {}
        chosen = global_batch(number, self.params.questions, len(self.tasks), self.seed)
        own = worker_share(list(range(len(chosen))), self.worker.rank, self.worker.world_size)
        jobs = [(group, self.tasks[chosen[group]]) for group in own for _ in range(self.params.rollouts)]
        with evaluating(policy), torch.no_grad():
            rollouts = self._roll_out(policy, jobs, number)
            scores = self._scores(policy, [task for _, task in jobs], rollouts)
            references = self._references(rollouts)
        found = [
            Experience(rollout, group, succeeds(self.environment, task, rollout), score_T, reference_L)
            for (group, task), rollout, score_T, reference_L in zip(jobs, rollouts, scores, references, strict=True)
        ]
        return self._gathered(found)

    def _roll_out(self, policy: PreTrainedModel, jobs: list[tuple[int, Task]], number: int) -> list[Rollout]:
        """The group is part of a seed: a set that spans epochs may ask one question twice."""
        engine = TransformersEngine(policy, self.renderer.stop_id, self.params.sampling)
        size, members = self.params.rollout_batch, self.params.rollouts
        tasks = [task for _, task in jobs]
        seeds = [
            derived_seed(self.seed, number, group, task.id, place % members) for place, (group, task) in enumerate(jobs)
        ]
        with self._timed("rollouts"):
            return [
                rollout
                for start in range(0, len(tasks), size)
                for rollout in roll_out(
                    engine,
                    self.environment,
                    self.tools,
                    self.renderer,
                    tasks[start : start + size],
                    seeds[start : start + size],
                    self.params.room,
                )
            ]

    def _scores(self, policy: PreTrainedModel, tasks: list[Task], rollouts: list[Rollout]) -> list[list[float]]:
        if not self.params.credit_rule.scores:
            return [[] for _ in rollouts]
        with self._timed("scoring"):
            thought = self.params.credit_rule.answer_thought
            answers = [Answer.of(self.renderer, task.answers[0], thought) for task in tasks]
            return [
                score(policy, rollout.ids, rollout.starts, answer).tolist()
                for answer, rollout in zip(answers, rollouts, strict=True)
            ]

    def _references(self, rollouts: list[Rollout]) -> list[list[float]]:
        """Log-probabilities of all tokens of each rollout under the reference."""
        if self.reference is None:
            return [[] for _ in rollouts]
        with self._timed("reference"), evaluating(self.reference):
            return list(chain.from_iterable(self._told(part) for part in _parts(rollouts, self.params.micro_batch)))

    def _told(self, rollouts: list[Rollout]) -> list[list[float]]:
        assert self.reference is not None
        ids_NL = padded([rollout.ids for rollout in rollouts], 0).to(self.worker.device)
        turn_NL = padded([rollout.turn_of for rollout in rollouts], -1).to(self.worker.device)
        positions_NL = positions_of(rollouts)
        placed_NL = None if positions_NL is None else positions_NL.to(self.worker.device)
        logp_NL, _ = policy_log_probs(self.reference, ids_NL, turn_NL >= 0, self.params.temperature, placed_NL)
        return [row[: len(rollout.ids)].tolist() for row, rollout in zip(logp_NL, rollouts, strict=True)]

    def _gathered(self, own: list[Experience]) -> list[Experience]:
        if self.worker.world_size == 1:
            return own
        shares: list[list[Experience]] = [[] for _ in range(self.worker.world_size)]
        torch.distributed.all_gather_object(shares, own)
        return list(chain.from_iterable(shares))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[phase] = time.monotonic() - started


def _parts(rollouts: list[Rollout], size: int) -> Iterator[list[Rollout]]:
    for start in range(0, len(rollouts), size):
        yield rollouts[start : start + size]
