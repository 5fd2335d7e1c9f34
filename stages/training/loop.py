"""The loop: every stage that trains runs these lines, on one worker or many.

Design rules. The gradient of a step is that of (sum of losses) / (number of target tokens) over its whole global batch,
so that accumulating equals batching and masked samples weigh what they should. Data order and random numbers are
functions of the seed and the step. A loss or gradient that is not finite stops the run before it reaches a checkpoint.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from stages.errors import DivergedError, StoppedError, UserError
from stages.training import checkpoints
from stages.training.engine import build_engine, clipped_norm, full_weights, set_learning_rate
from stages.training.order import global_batch, micro_batches, step_seed, worker_share
from stages.training.recipe import Batch, Worker
from stages.training.task import Task, TrainingResult
from stages.training.telemetry import Telemetry


@dataclass(frozen=True)
class StepResult:
    """What one update did: the mean losses over its target tokens and the gradient's norm before clipping."""

    losses: dict[str, float]
    grad_norm: float
    checkpoint_due: bool
    stop: bool


def train(task: Task, worker: Worker) -> TrainingResult:
    """Train `task` on this worker, inside an existing process group; the figures are worker 0's.

    Raises UserError when a loss is not finite or nothing is trainable.
    """
    with warnings.catch_warnings():
        # DeepSpeed calls collectives by names that torch is about to retire: nothing a user could act on.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        return _Loop(task, worker).run()


class _Loop:
    def __init__(self, task: Task, worker: Worker) -> None:
        task.recipe.prepare(worker)
        self.task, self.worker, self.recipe, self.settings = task, worker, task.recipe, task.settings
        self.step_tokens = self.settings.batch_sequences * self.recipe.sample_tokens
        self.num_steps = self.settings.num_steps(self.recipe.sample_tokens)
        largest_share = math.ceil(self.settings.batch_sequences / worker.world_size)
        self.num_micro = math.ceil(largest_share / self.settings.micro_batch)
        self.rate = task.learning_rate(self.num_steps)
        self.telemetry = Telemetry(worker, self.num_steps, self.step_tokens, self.recipe.unit)
        self.layout = checkpoints.Layout.of(self.settings, worker)
        self.engine = build_engine(self.recipe.build(), self.settings, worker, self.num_micro)
        self.loss = math.nan

    def run(self) -> TrainingResult:
        first = self._resume()
        epochs = self.num_steps * self.settings.batch_sequences / self.recipe.num_samples
        through = f", {epochs:.2f} times through the data" if self.recipe.unit == "tokens" else ""
        self.telemetry.say(
            f"training {self.num_steps - first} steps of {self.step_tokens} {self.recipe.unit} on "
            f"{self.worker.world_size} worker(s) in {self.worker.computed_in}{through}"
        )
        self.saved_at = time.monotonic()
        for step in range(first, self.num_steps):
            self._update(step)
        return TrainingResult(self._finish(), self.telemetry.cost(), self.worker.computed_in)

    def _update(self, step: int) -> None:
        started = time.monotonic()
        torch.manual_seed(step_seed(self.task.seed, step, self.worker.rank))
        rate = self.rate.at(step)
        set_learning_rate(self.engine, rate)
        result = self._optimise(step)
        self.loss = result.losses[self.recipe.loss_name]
        curves = {**result.losses, "learning_rate": rate, "grad_norm": result.grad_norm}
        self.telemetry.updated(step + 1, time.monotonic() - started, curves)
        self._evaluate(step + 1)
        if result.checkpoint_due or result.stop:
            self.recipe.settle()
            checkpoints.save(self.engine, self.task.checkpoint_directory, step + 1, self.loss, self.layout)
            self.saved_at = time.monotonic()
        if result.stop:
            raise StoppedError(f"stopped after step {step + 1} of {self.num_steps}, with a checkpoint to go on from")

    def _optimise(self, step: int) -> StepResult:
        """One update: every micro-batch forward and backward, the checks, the optimiser."""
        shares = list(self._micro_batches(step))
        due = self.worker.rank == 0 and time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_minutes
        stop = self.worker.rank == 0 and self.worker.stopping()
        num_targets, num_due, num_stop = self._summed([sum(share.num_targets for share in shares), due, stop])
        if num_targets == 0:
            raise UserError(f"step {step + 1} has no target token in its whole batch", fix="check the data's loss mask")
        sums: dict[str, Tensor] = {}
        for number, share in enumerate(shares):
            self._accumulate(share, num_targets, sums)
            if number + 1 < len(shares):
                self.engine.step()  # counts the micro-batch; the update comes with the last one
        losses = {name: total / num_targets for name, total in zip(sums, self._summed(sums.values()), strict=True)}
        self._require_finite(step, "loss", losses[self.recipe.loss_name])
        return StepResult(losses, self._step_engine(step), checkpoint_due=num_due > 0, stop=num_stop > 0)

    def _micro_batches(self, step: int) -> Iterator[_Share]:
        """This worker's micro-batches of `step`: as many on every worker, since they take part in each collective."""
        batch = global_batch(step, self.settings.batch_sequences, self.recipe.num_samples, self.task.seed)
        own = worker_share(batch, self.worker.rank, self.worker.world_size)
        for indices in micro_batches(own, self.settings.micro_batch, self.num_micro):
            yield _Share(self.recipe.batch(indices or batch[:1]), counts=bool(indices))

    def _accumulate(self, share: _Share, num_targets: float, sums: dict[str, Tensor]) -> None:
        loss = self.recipe.loss(self.engine, share.batch.to(self.worker.device))
        # DeepSpeed averages over the workers: times their number, that is a sum.
        scale = share.counts * self.worker.world_size / num_targets
        self.engine.backward(loss.total * scale, scale_wrt_gas=False)
        for name, value in {self.recipe.loss_name: loss.total, **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double() * share.counts

    def _step_engine(self, step: int) -> float:
        """Apply the accumulated gradients; their norm before clipping."""
        norm = clipped_norm(self.engine, self.settings)
        if norm is not None:
            self._require_finite(step, "gradient norm", norm)
        self.engine.step()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm())
            self._require_finite(step, "gradient norm", norm)
        return norm

    def _summed(self, values: Iterable[float | Tensor]) -> list[float]:
        """Each value summed over the workers."""
        packed = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=self.worker.device) for x in values])
        torch.distributed.all_reduce(packed)
        return packed.tolist()

    def _require_finite(self, step: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"the {what} became {value} at step {step + 1} of {self.num_steps}; the last loss was {self.loss:.4g}",
                fix="lower `learning_rate` or lengthen `warmup_fraction`; if it is the first step, check the data",
            )

    def _evaluate(self, step: int) -> None:
        every = self.settings.evaluate_every
        if every and step % every == 0:
            self.engine.eval()
            with torch.no_grad():
                self.telemetry.curves(step, self.recipe.evaluate(self.engine))
            self.engine.train()

    def _resume(self) -> int:
        """Continue from the newest checkpoint; the number of updates already made."""
        checkpoint = checkpoints.newest(self.task.checkpoint_directory)
        if checkpoint is None:
            return 0
        if checkpoint.layout != self.layout:
            self.telemetry.say(
                f"the checkpoint of step {checkpoint.step} has {checkpoint.layout or 'an unknown layout'}, "
                f"now {self.layout}: starting over"
            )
            return 0
        checkpoints.load(self.engine, checkpoint)
        self.loss = checkpoint.loss
        self.telemetry.say(f"resuming after step {checkpoint.step} of {self.num_steps}")
        return checkpoint.step

    def _finish(self) -> dict[str, float]:
        """Worker 0 saves and measures the trained module, after the optimiser has given back its memory."""
        module = self._trained_module()
        return {self.recipe.loss_name: self.loss, **self.recipe.finish(module)} if module is not None else {}

    def _trained_module(self) -> nn.Module | None:
        """A fresh module with the trained weights, without the engine's hooks, on worker 0; None on the others."""
        weights = full_weights(self.engine, keep=self.worker.rank == 0)
        self.engine.destroy()
        del self.engine
        if self.worker.rank:
            return None
        module = self.recipe.build()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.data = weights.pop(name)
        assert not weights, f"the rebuilt module lacks {sorted(weights)}"
        return module.to(self.worker.device).eval()


@dataclass(frozen=True)
class _Share:
    """A micro-batch of this worker; one that does not count only keeps the worker in step with the others."""

    batch: Batch
    counts: bool

    @property
    def num_targets(self) -> int:
        return self.batch.num_targets if self.counts else 0
