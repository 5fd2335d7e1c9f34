"""What a worker does to learn by rollouts, as a recipe of the training loop.

To the loop a sample is a slot: one of the N rollouts of the set that is being learnt from. Every step goes once through
all of them. The set itself is there when the first slot of a step is asked for: made with the weights as they are then,
by the very policy that learns, or begun one set earlier (`sets`). Which set that is follows from the engine's own count
of updates, which its checkpoints hold: a resumed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.loader import load_model, save_model
from stages.agent.conversation.rendering import load_renderer
from stages.agent.environment.base import Environment
from stages.agent.environment.toolbox import Toolbox
from stages.agent.rl.batch import Tokens
from stages.agent.rl.collector import Collector
from stages.agent.rl.curves import curves_of, summary
from stages.agent.rl.experience import Diary, Experience
from stages.agent.rl.log_probs import policy_log_probs
from stages.agent.rl.losses import stale, token_loss
from stages.agent.rl.prompts import check_gains, fitting
from stages.agent.rl.sets import Here, Sets, SetWriter
from stages.artifacts import Dataset, Model
from stages.evaluate.distance import distance
from stages.training.recipe import Batch, Loss, Recipe, Worker
from stages.training.windows import first_windows

if TYPE_CHECKING:
    from stages.agent.rl.settings import PolicyParameters


@dataclass
class AgentLearning(Recipe):
    """Learning of `model` in an environment."""

    unit: ClassVar[str] = "rollouts"
    loss_name: ClassVar[str] = "policy_loss"

    model: Model
    reference: Model
    environment: Callable[[], Environment]
    """Opens it, once a worker."""
    heldout: Dataset | None
    params: PolicyParameters
    seed: int
    scratch: Path
    """Where experience is kept, and windows are decoded to."""
    out: Path
    writer: SetWriter | None = None
    """What writes the sets in another process; None: the workers do."""
    _live: _Live | None = field(default=None, repr=False)

    def prepare(self, worker: Worker) -> None:
        """Read the held-out windows, and load what writes rollouts, unless that is another process."""
        held_NT = None
        if self.heldout is not None:
            held_NT = first_windows(self.heldout, self.scratch / "windows", self.params.heldout_windows)
        writer = self.writer or Here(self.collector(worker))
        diary = Diary(self.scratch / "rollouts")
        self._live = _Live(worker, Sets(writer, diary, self.params.num_sets, self.params.staleness, worker), held_NT)

    def collector(self, worker: Worker) -> Collector:
        """The environment, open, and the reference where the loss asks for one."""
        renderer = load_renderer(self.model)
        environment = self.environment()
        check_gains(environment, self.params.credit_rule, worker)
        tasks = fitting(environment, renderer, self.params, worker)
        reference = self._load(self.reference, worker).requires_grad_(False) if self.params.kl_weight else None
        tools = Toolbox(environment.tools, self.params.tool_seconds)
        return Collector(environment, tasks, tools, renderer, reference, self.params, self.seed, worker)

    def policy(self, worker: Worker) -> PreTrainedModel:
        """The policy as it was given, where `worker` computes."""
        return self._load(self.model, worker)

    @property
    def live(self) -> _Live:
        """What `prepare` has loaded."""
        assert self._live is not None, "the loop calls `prepare` first"
        return self._live

    def build(self) -> nn.Module:
        """The policy."""
        return load_model(self.model.path, dtype=self.live.worker.dtype)

    @property
    def num_samples(self) -> int:
        """Slots: rollouts in a set."""
        return self.params.num_rollouts

    @property
    def sample_tokens(self) -> int:
        """A rollout counts as one."""
        return 1

    def batch(self, indices: Sequence[int]) -> Batch:
        """The numbers of the slots; what is in them is known once the set is made."""
        return Batch({"slot_B": torch.tensor(indices)}, num_targets=len(indices))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The policy loss summed over rollouts, and curves of what the update does."""
        tokens = self._tokens(model).rows(batch.tensors["slot_B"], self.live.worker.device)
        logp_BL, entropy_BL = policy_log_probs(
            model, tokens.ids, tokens.sampled, self.params.temperature, tokens.positions
        )
        stale_B = stale(logp_BL, tokens.old, tokens.sampled, self.params.stale_limit)
        weight_BL = tokens.weight * ~stale_B.unsqueeze(1)
        found = token_loss(logp_BL, tokens.old, tokens.reference, tokens.advantage, self.params.loss_rule)
        parts = {
            **({"kl": (found.kl * weight_BL).sum()} if self.params.kl_weight else {}),
            "entropy": (entropy_BL * weight_BL).sum(),
            "clipped": (found.clipped * weight_BL).sum(),
            "stale": stale_B.float().sum(),
        }
        return Loss((found.loss * weight_BL).sum(), {name: value.detach() for name, value in parts.items()})

    def settle(self) -> None:
        """Keep the set under way: a run that resumes has not the weights any more that it was begun with."""
        self.live.sets.settle()

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save the policy, and measure it against its parent on the held-out windows."""
        assert isinstance(model, PreTrainedModel), f"a policy is a PreTrainedModel, got {type(model).__name__}"
        self.live.sets.writer.close()
        save_model(model, self.out, tokenizer_from=self.model.path, dtype=self.live.worker.stored)
        return {**summary(self.live.sets.diary, self.params), **self._distance(model)}

    def _tokens(self, engine: Any) -> Tokens:
        """The set that the next update learns from, made or read when it is first asked for."""
        live, number = self.live, engine.global_steps // self.params.updates
        if live.number != number:
            live.number, live.tokens = number, Tokens.of(self._experience(engine, number), self.params)
        assert live.tokens is not None
        return live.tokens

    def _experience(self, engine: Any, number: int) -> list[Experience]:
        """The set `number`, its curves told."""
        worker, found = self.live.worker, self.live.sets.next(engine.module, number)
        if worker.rank == 0:
            seconds = {f"seconds_{phase}": value for phase, value in found.seconds.items()}
            curves = {**curves_of(found.experiences, self.params), **seconds}
            worker.emit({"event": "curve", "step": engine.global_steps + 1, "values": curves})
        return found.experiences

    def _distance(self, model: nn.Module) -> dict[str, float]:
        if self.live.held is None:
            return {}
        parent = self._load(self.model, self.live.worker)
        return distance(parent, model, self.live.held, batch_size=self.params.micro_batch).metrics()

    def _load(self, source: Model, worker: Worker) -> PreTrainedModel:
        return load_model(source.path, dtype=worker.dtype).to(worker.device)


@dataclass
class _Live:
    """What a worker holds while it learns."""

    worker: Worker
    sets: Sets
    held: Tensor | None
    """Held-out token ids [N, T]."""
    number: int = -1
    """Of the set in `tokens`."""
    tokens: Tokens | None = None
