"""The parameters of stages that train proxies. Imported to plan: no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.training.precision import Precision
from stages.training.settings import TrainingParameters


class ProxyParameters(TrainingParameters):
    """What a proxy is, how it is trained, and what it is measured on."""

    start: Literal["scratch", "model"] = "scratch"
    """What is trained: a new Llama of the shape below, with random weights and the tokenizer of input `model`, or that
    model with its weights."""
    num_layers: Annotated[int, Field(ge=1)] = 4
    """Layers of a new Llama."""
    hidden_size: Annotated[int, Field(ge=8)] = 256
    """Its hidden channels."""
    num_heads: Annotated[int, Field(ge=1)] = 4
    """Its attention heads; `hidden_size` over it is even."""
    intermediate_size: Annotated[int, Field(ge=1)] | None = None
    """Channels of its feed-forward parts; 8/3 of `hidden_size`, in multiples of 8, without it."""
    tie_embeddings: bool = True
    """Whether it reads and predicts with one embedding."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Decoupled weight decay of matrices; vectors (norms, biases) never decay."""
    precision: Precision = "fp32"
    """Arithmetic of forward and backward. Proxies differ by less than bfloat16 rounds, so float32 unless they are
    large; weights accumulate in float32 in any case."""
    validation_windows: Annotated[int, Field(ge=1)] = 64
    """Windows of each held-out dataset that are measured, evenly spaced over it."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.start == "scratch" and self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size: {self.hidden_size} is no even multiple of num_heads: {self.num_heads}, as rotary "
                "positions need"
            )
        if self.evaluate_every:
            raise ValueError(
                "evaluate_every: a proxy's curve is part of its result; `evaluations` of proxy.train sets it"
            )
        return self

    @property
    def ffn_size(self) -> int:
        """Channels of the feed-forward parts of a new Llama."""
        return self.intermediate_size or max(8, round(self.hidden_size * 8 / 3 / 8) * 8)

    def smoke(self) -> Self:
        """A narrow model of two layers, a few steps; a little more of both for more, so that sizes stay apart."""
        few = {"validation_windows": min(self.validation_windows, 4)}
        shape = {"num_layers": min(self.num_layers, 2), "num_heads": 2, "intermediate_size": None}
        width = {"hidden_size": min(self.hidden_size // 4 * 4, 4 * self.hidden_size.bit_length())}
        tokens = {"tokens": min(self.tokens, 64 * self.tokens.bit_length())}
        return super().smoke().replaced(**shape, **width, **tokens, **few)


class ProxyTrainParameters(ProxyParameters):
    """A proxy, the rate that it is trained at, and how often it is measured."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """The standard peak learning rate of AdamW: what one would train with, from `proxy.sweep` or `proxy.step_law`."""
    reduction: Annotated[float, Field(ge=1)] | None = None
    """What the standard learning rate is divided by, warm-up and fall with it (arXiv 2512.24503: 10 to 100). 1: the
    standard rate. Without it that of input `optimum`, if it tells one, else 30."""
    evaluations: Annotated[int, Field(ge=1)] = 8
    """Evaluations on the held-out text while training, evenly spaced; the last is at the end."""

    def smoke(self) -> Self:
        """The same with two evaluations."""
        return super().smoke().replaced(evaluations=min(self.evaluations, 2))
