"""The parameters of policies that learn from rollouts, and those of `agent.rl`. Imported to plan: no torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from stages.agent.conversation.messages import write_turn
from stages.agent.rl.rules import Aggregation, Credit, CreditRule, GainForm, LossRule, Scaling
from stages.agent.rollout.engine import Sampling
from stages.agent.rollout.rollouts import Room
from stages.stage import EXECUTION, Parameters
from stages.training.precision import Precision
from stages.training.schedule import Schedule
from stages.training.settings import TrainingParameters


class PolicyParameters(Parameters):
    """How rollouts are made and how a policy learns from them: inherit it and add what they earn."""

    steps: Annotated[int, Field(ge=1)] = 50
    """Updates of the policy."""
    questions: Annotated[int, Field(ge=1)] = 4
    """Questions in a step; every question is asked once before any is asked again."""
    rollouts: Annotated[int, Field(ge=2)] = 8
    """Rollouts of each question, which are compared with each other."""
    updates: Annotated[int, Field(ge=1)] = 1
    """Updates made from one set of rollouts; with more than one the clip comes into play."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """Sets by which the policy that writes lags behind the one that learns. 1: each set but the first is written with
    the weights from before the updates of the last one, and beside those updates where there is room for it."""

    turn_tokens: Annotated[int, Field(ge=2)] = 128
    """Tokens of a turn at most."""
    window: Annotated[int, Field(ge=16)] = 1024
    """Tokens of a rollout at most, the prompt and what tools said included."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling; the log-probabilities that the policy learns by are those at this temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the fewest tokens that have this much probability together."""

    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio of new to old probability counts down to 1 - this."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The ratio of new to old probability counts up to 1 + this."""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the KL to the reference; 0 needs no reference in memory."""
    aggregation: Aggregation = "sequence"
    """`sequence`: every rollout weighs the same; `token`: every token does."""
    drop_cut: bool = False
    """Leave rollouts that ran out of turns or room out of the update; they still count in their group."""
    stale_limit: Annotated[float, Field(gt=0)] = 1.0
    """A rollout whose tokens' log-probabilities have moved by more than this on average is left out of an update."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """Peak learning rate of AdamW."""
    schedule: Schedule = "constant"
    """Shape after the warm-up, see `distill.logits`."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the learning rate rises linearly to its peak."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of matrices."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a step's gradient."""
    precision: Precision = "auto"
    """Arithmetic of rollouts and updates, see `distill.logits`; gradients accumulate in float32."""
    heldout_windows: Annotated[int, Field(ge=1)] = 128
    """Windows of the input `heldout` that the distance to the parent is measured on."""

    micro_batch: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Rollouts in one forward pass of an update: lower it when memory runs out."""
    rollout_batch: Annotated[int, Field(ge=1), EXECUTION] = 32
    """Rollouts written side by side by one worker."""
    tool_seconds: Annotated[float, Field(gt=0), EXECUTION] = 30
    """Seconds that tools may take."""
    zero_stage: Annotated[int, Field(ge=0, le=2), EXECUTION] = 0
    """What workers share out, not copy: 1 optimiser state, 2 and gradients. Weights shared out could not generate."""
    activation_checkpointing: Annotated[bool, EXECUTION] = False
    """Recompute activations in the backward pass: about a third slower, much less memory."""
    checkpoint_minutes: Annotated[float, Field(ge=0), EXECUTION] = 10
    """Minutes between checkpoints to resume from; 0 saves one after every step."""

    @model_validator(mode="after")
    def _turns_fit(self) -> Self:
        if self.turn_tokens >= self.window:
            raise ValueError(f"turn_tokens: {self.turn_tokens} leaves no room for a prompt in window: {self.window}")
        return self

    @property
    def num_rollouts(self) -> int:
        """Rollouts in a step."""
        return self.questions * self.rollouts

    @property
    def num_sets(self) -> int:
        """Sets of rollouts that a run makes."""
        return -(-self.steps // self.updates)

    @property
    def room(self) -> Room:
        """How much a policy may write."""
        return Room(1, self.turn_tokens, self.window)

    @property
    def credit_rule(self) -> CreditRule:
        """How rewards become advantages: of the outcome alone."""
        return CreditRule("grpo")

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_p)

    @property
    def loss_rule(self) -> LossRule:
        """How advantages become a loss."""
        return LossRule(self.clip_low, self.clip_high, self.kl_weight)

    def training(self) -> TrainingParameters:
        """What the training loop is told: a sequence is a rollout, and so is what it counts as a token."""
        return TrainingParameters(
            tokens=self.steps * self.num_rollouts,
            batch_sequences=self.num_rollouts,
            **self.model_dump(include=TrainingParameters.model_fields.keys() & type(self).model_fields.keys()),
        )

    def smoke(self) -> Self:
        """Two steps of short rollouts."""
        small = {"steps": 2, "questions": 2, "rollouts": 2, "turn_tokens": 24, "heldout_windows": 4}
        return self.replaced(**{name: min(getattr(self, name), limit) for name, limit in small.items()})

    def smaller(self, workers: int) -> Self | None:
        """Fewer rollouts in a forward pass; then activations recomputed; then more shared out by ZeRO."""
        if self.micro_batch > 1 or self.rollout_batch > 1:
            halves = {"micro_batch": self.micro_batch, "rollout_batch": self.rollout_batch}
            return self.replaced(**{name: max(1, value // 2) for name, value in halves.items()})
        if not self.activation_checkpointing:
            return self.replaced(activation_checkpointing=True)
        return self.replaced(zero_stage=self.zero_stage + 1) if workers > 1 and self.zero_stage < 2 else None


class LearningParameters(PolicyParameters):
    """How rollouts are made, what they earn, and how the policy learns from it."""

    turns: Annotated[int, Field(ge=1)] = 6
    """Turns of a rollout at most."""
    credit: Credit = "igpo"
    """Which rewards count: `igpo` information gain and outcome, `gain` the first alone, `outcome` the second alone,
    `grpo` the outcome without the penalty for malformed answers, as in arXiv 2402.03300."""
    gain: GainForm = "log_probability"
    """What a gain is a difference of: the mean log-probability of the true answer's tokens (DR-Venus, arXiv 2604.19859)
    or their geometric mean probability (IGPO, arXiv 2510.14967), which hardly moves where answers are long."""
    answer_thought: str = "Now there's enough information to answer."
    """What the turn thinks in which the true answer is scored; best what the policy itself thinks before it answers."""
    gain_tools: tuple[str, ...] | None = None
    """Tools whose calls have a gain, `[visit]` in DR-Venus; the other turns have the return of the next that has one.
    Null: all."""
    gain_clip: Annotated[float, Field(gt=0)] = 5.0
    """Largest size of a gain, before it is normalised."""
    scaling: Scaling = "scaled"
    """Gains and outcomes are normalised apart, each in its group; `scaled` also brings the gains to the outcomes'
    size over the batch."""
    discount: Annotated[float, Field(gt=0, le=1)] = 0.95
    """γ: what a rewarded turn is worth to the one before."""
    final_weight: Annotated[float, Field(gt=0, le=1)] | None = None
    """Makes γ adaptive: w^(1/T) for a rollout of T turns. The outcome then reaches a first turn with w^((T-1)/T), which
    stays above w however long the rollout is. Null: `discount`."""
    format_penalty: Annotated[float, Field(ge=0)] = 1.0
    """λ: a malformed turn earns -λ in place of its gain, a last one in place of the outcome. Unused by `grpo`."""

    @model_validator(mode="after")
    def _thought_is_sayable(self) -> Self:
        try:
            write_turn(self.answer_thought, "an answer")
        except ValueError as problem:
            raise ValueError(f"answer_thought: {problem}") from problem
        return self

    @property
    def room(self) -> Room:
        """How much a policy may write."""
        return Room(self.turns, self.turn_tokens, self.window)

    @property
    def credit_rule(self) -> CreditRule:
        """How rewards become advantages."""
        return CreditRule(
            self.credit,
            self.scaling,
            self.discount,
            self.final_weight,
            self.format_penalty,
            self.gain_clip,
            self.gain,
            self.gain_tools,
            self.answer_thought,
        )

    def smoke(self) -> Self:
        """Two steps of short rollouts."""
        return super().smoke().replaced(turns=min(self.turns, 2))
