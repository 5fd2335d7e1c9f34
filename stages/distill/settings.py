"""The parameters of logit distillation. Imported to plan: no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.training.settings import TrainingParameters

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
"""KL(teacher || student), KL(student || teacher), or the generalised Jensen-Shannon divergence (arXiv 2306.13649)."""
Weight = Annotated[float, Field(ge=0)]
Layer = Annotated[int, Field(ge=0)]


class DistillParameters(TrainingParameters):
    """How to distil: the loss, and the training itself."""

    divergence: Divergence = "forward_kl"
    """What is minimised between the next-token distributions: `forward_kl` (to the teacher's whole distribution),
    `reverse_kl` (to its best tokens), or `jsd` between the two."""
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """β of `jsd`: near 0 it behaves like the forward KL, near 1 like the reverse; its size is then β or 1 − β times
    theirs. Unused by the others."""
    kl_weight: Weight = 1.0
    """Weight of the divergence to the teacher, which is multiplied by temperature squared."""
    ce_weight: Weight = 0.0
    """Weight of the cross-entropy with the text itself."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Both distributions of the divergence are softened by it: 1 leaves them as they are."""
    hidden_weight: Weight = 0.0
    """Weight of the distance of hidden states: the squared error of a layer's output as a share of the teacher's
    squared norm there, mean over the pairs of layers. Student and teacher must be equally wide."""
    attention_weight: Weight = 0.0
    """Weight of the KL of attention patterns, in nats, mean over heads and pairs of layers. Student and teacher must
    have as many heads. Attention then runs unfused, with memory that grows by the square of the window."""
    layer_map: Annotated[tuple[tuple[Layer, Layer], ...], Field(min_length=1)] | None = None
    """Pairs of (student's layer, teacher's layer), from 0, for the two terms above; for hidden states the last layer
    only with the last. Null: every layer of the student with the layer it was kept from, or else with one as deep."""
    tail_layers: Annotated[int, Field(ge=1)] | None = None
    """Only the last so many of these pairs count: tail-layer distillation (FoldGPT, arXiv 2407.00928). Null: all."""
    on_policy_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the windows that the student continues by itself, from their first `prompt_tokens`; what it wrote is
    then compared with what the teacher would have said there (arXiv 2306.13649)."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens of such a window that stay; unused without `on_policy_fraction`."""
    heldout_windows: Annotated[int, Field(ge=1)] = 128
    """Windows of the held-out data that the student is measured on, from the start."""

    @model_validator(mode="after")
    def _some_loss(self) -> DistillParameters:
        if not (self.ce_weight or self.asks_teacher):
            raise ValueError("kl_weight and ce_weight are both 0: nothing would be learnt; set one of them")
        return self

    @model_validator(mode="after")
    def _own_text(self) -> DistillParameters:
        if self.on_policy_fraction and self.ce_weight:
            raise ValueError("ce_weight would make the student's own samples its targets; set on_policy_fraction: 0")
        if self.on_policy_fraction and self.zero_stage == 3:
            raise ValueError("a student shared out by zero_stage 3 cannot generate; set zero_stage to 2 or less")
        return self

    @property
    def compares_layers(self) -> bool:
        """Whether hidden states or attention patterns enter the loss."""
        return bool(self.hidden_weight or self.attention_weight)

    @property
    def asks_teacher(self) -> bool:
        """Whether what the teacher says enters the loss; else the student learns from the text alone."""
        return bool(self.kl_weight) or self.compares_layers

    def smoke(self) -> Self:
        """A few steps, measured on a few windows, between the layers of a small model."""
        small = super().smoke()
        return small.replaced(
            heldout_windows=min(self.heldout_windows, 4), prompt_tokens=min(self.prompt_tokens, 8), layer_map=None
        )

    @property
    def needs_whole_weights(self) -> bool:
        """Whether weights are read outside of the forward pass, as generating does: ZeRO 3 must not share them out."""
        return bool(self.on_policy_fraction)

    def smaller(self, workers: int) -> Self | None:
        """As for all training, but weights that have to be whole stay so."""
        last = self.micro_batch == 1 and self.activation_checkpointing and self.zero_stage == 2
        return None if last and self.needs_whole_weights else super().smaller(workers)


class LogitsParameters(DistillParameters):
    """How to distil: the student, the loss, and the training itself."""

    depth_fraction: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    """Share of the teacher's layers that the student keeps (at least 2); unused when a student is given."""
