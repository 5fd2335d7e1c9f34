"""The parameters that every stage that trains inherits.

What decides the result (the token budget, the global batch, the schedule, the precision) is identity. How the work is
cut up (micro-batches, ZeRO, recomputation, checkpoints) is execution: it changes the result by rounding at most.
This module is imported to plan, so it imports no torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Self

from pydantic import Field

from stages.evaluate.measured import DISTANCE
from stages.stage import EXECUTION, Parameters
from stages.training.precision import Precision
from stages.training.schedule import Schedule

TRAINED: Final = ("loss", *DISTANCE, "tokens_per_second", "peak_memory_gib")
"""Figures of a stage that trains a model and measures its distance to the parent."""


class TrainingParameters(Parameters):
    """How to train: inherit it and add what the method needs."""

    tokens: Annotated[int, Field(ge=1)] = 1_000_000
    """Tokens to train on, padding included; rounded up to whole steps. Data shorter than this is seen again."""
    batch_sequences: Annotated[int, Field(ge=1)] = 16
    """Sequences in one optimiser step, over all workers and micro-batches (the global batch)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Schedule = "cosine"
    """Shape after the warm-up: `constant`, `linear` or `cosine` fall, or `wsd` (constant, then a linear fall)."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end, as a share of the peak; unused by `constant`."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises linearly to its peak."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps in which `wsd` decays; unused by the other schedules."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) never decay."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the second moment."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the global batch's gradient; a larger one is scaled down to it."""
    precision: Precision = "auto"
    """Arithmetic of forward and backward: `bf16`, where weights and gradients still accumulate in float32, or `fp32`;
    `auto` is bf16 where the hardware has instructions for it, else fp32."""
    micro_batch: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Sequences in one forward pass of one worker: lower it when memory runs out."""
    zero_stage: Annotated[int, Field(ge=0, le=3), EXECUTION] = 0
    """What workers share out, not copy: 1 optimiser state, 2 and gradients, 3 and weights (arXiv 1910.02054)."""
    activation_checkpointing: Annotated[bool, EXECUTION] = False
    """Recompute activations in the backward pass: about a third slower, much less memory."""
    checkpoint_minutes: Annotated[float, Field(ge=0), EXECUTION] = 10
    """Minutes between checkpoints to resume from; 0 saves one after every step."""
    evaluate_every: Annotated[int, Field(ge=0), EXECUTION] = 0
    """Steps between evaluations on held-out data while training; 0 evaluates at the end only."""

    def num_steps(self, sample_tokens: int) -> int:
        """Steps that `tokens` take with samples of so many."""
        return math.ceil(self.tokens / (self.batch_sequences * sample_tokens))

    def smoke(self) -> Self:
        """A few steps on a few sequences."""
        return self.replaced(tokens=min(self.tokens, 512), batch_sequences=min(self.batch_sequences, 4))

    def smaller(self, workers: int) -> Self | None:
        """Half the micro-batch, down to one sequence; then activations recomputed; then more shared out by ZeRO."""
        if self.micro_batch > 1:
            return self.replaced(micro_batch=self.micro_batch // 2)
        if not self.activation_checkpointing:
            return self.replaced(activation_checkpointing=True)
        return self.replaced(zero_stage=self.zero_stage + 1) if workers > 1 and self.zero_stage < 3 else None


class MeasuredTraining(TrainingParameters):
    """Training of a model that is measured on held-out text."""

    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of the held-out data that the model is measured on, from the start."""

    def smoke(self) -> Self:
        """A few steps, measured on a few windows."""
        return super().smoke().replaced(heldout_windows=min(self.heldout_windows, 4))
