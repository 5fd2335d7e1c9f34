"""The graft `experts`: feed-forward parts, and attention where it is wanted, become a mixture of experts.

One graft for the whole family. Which model gives which expert, and what is done to it, is in `making`; how tokens are
routed is beside it. Copies of one model are sparse upcycling (arXiv 2212.05055), with `drop` Drop-Upcycling (arXiv
2502.19261); several models are Branch-Train-MiX (arXiv 2403.07816), with attention experts BAM (arXiv 2408.08274).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Gt
from pydantic import model_validator
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from grafts.bases import decoder_layers
from grafts.experts.attention import AttentionExperts, MixtureOfAttention
from grafts.experts.block import make_parallel
from grafts.experts.feed_forward import ExpertFeedForward
from grafts.experts.record import Record
from grafts.experts.settings import Making
from grafts.experts.tensors import InMemory, Maker, whole
from grafts.graft import Graft, Place, Sources


class Experts(Graft):
    """A mixture of N experts in every layer, of which each token goes through K."""

    name: ClassVar[str] = "experts"
    place: ClassVar[Place] = "feed_forward"

    num_experts: Annotated[int, Ge(2)]
    """Whole experts of a layer, N."""
    top_k: Annotated[int, Ge(1)] = 2
    """Whole experts that a token goes through, K."""
    renormalise: bool = True
    """Gates of a token sum to 1; off, they are what the softmax over all experts gave, as in BAM."""
    split: Annotated[int, Ge(1)] = 1
    """Equal shares that each expert is cut into, routed one by one: split · N experts, split · K for a token."""
    capacity: Annotated[float, Gt(0)] | None = None
    """Room of an expert while training, in multiples of an even share; tokens beyond it skip the expert. Null: no
    token is ever dropped."""
    attention: AttentionExperts | None = None
    """Attention experts, all of them on every token: with keys and values of their own, or shared ones. Null: none."""
    block: Literal["serial", "parallel"] = "serial"
    """Attention, then experts, as in the base; or both on the same input, as in BAM's seed."""
    balance_weight: Annotated[float, Ge(0)] = 1e-2
    """Weight of the load-balance loss, where the model's own loss is asked for with its router logits."""
    z_weight: Annotated[float, Ge(0)] = 1e-3
    """Weight of the z-loss there."""
    making: Making = Making()
    """What the tensors were made of."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k is {self.top_k}, there are {self.num_experts} experts")
        return self

    def check(self, base: PretrainedConfig, earlier: Sequence[Graft]) -> None:
        """ValueError unless the layers of `base` are alike, plain where they are replaced, and cut evenly."""
        if getattr(base, "is_heterogeneous", False):
            raise ValueError("the base gives single layers their own widths (`per_layer_config`); take an even model")
        if base.intermediate_size % self.split:
            raise ValueError(
                f"{base.intermediate_size} feed-forward units cannot be cut into {self.split} equal shares"
            )
        grafted = [graft.name for graft in earlier if graft.place == "attention"]
        if self.attention and grafted:
            raise ValueError(
                f"attention experts are copies of plain attention, the model's is '{grafted[0]}': "
                "leave `attention` out, the feed-forward experts fit beside it"
            )

    def build(self, model: PreTrainedModel) -> None:
        """Put layers of experts in place of the feed-forward parts, and of attention where it is wanted."""
        record = Record(self.top_k * self.split, self.balance_weight, self.z_weight)
        for layer in decoder_layers(model):
            layer.mlp = ExpertFeedForward(layer.mlp, self, record).train(layer.training)
            if self.attention:
                mixture = MixtureOfAttention(layer.self_attn, self.num_experts, self.attention, record)
                layer.self_attn = mixture.train(layer.training)
            if self.block == "parallel":
                make_parallel(layer)
        model._can_compile_fullgraph = False
        record.watch(model)

    @torch.no_grad()
    def convert(self, model: PreTrainedModel, sources: Sources) -> None:
        """The structure of `build`, made of `model` and then `sources.models` as `making` says.

        ValueError unless the models are of one shape and give equally many experts.
        """
        states = [dict(source.state_dict()) for source in (model, *sources.models)]
        self.check_sources(len(states))
        _check_shapes(states)
        maker = Maker(self, len(states), InMemory(states))
        with no_init_weights():
            self.build(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(whole(maker.make(name, parameter.shape)))

    def check_sources(self, num_sources: int) -> None:
        """ValueError unless the experts can be shared out evenly among the sources."""
        num_givers = num_sources - (0 if num_sources == 1 or self.making.first_is_expert else 1)
        if self.num_experts % num_givers:
            raise ValueError(f"{self.num_experts} experts cannot come evenly from {num_givers} models")

    def is_exact(self, num_sources: int) -> bool:
        """Whether a model made from `num_sources` sources must compute what the only one did, up to float32's rounding.

        Shares that are no power of two scale their weights in the stored type, which rounds.
        """
        untouched = self.making.noise == self.making.drop == 0 and self.split & (self.split - 1) == 0
        return num_sources == 1 and self.renormalise and self.block == "serial" and untouched

    def identity(self, base: PretrainedConfig) -> Self:  # noqa: ARG002
        """Untouched copies of one model, gates that sum to 1, room for every token."""
        making = self.making.model_copy(update={"noise": 0.0, "drop": 0.0})
        plain = {"renormalise": True, "capacity": None, "block": "serial", "making": making}
        return self.model_copy(update=plain)


def _check_shapes(states: Sequence[Mapping[str, Tensor]]) -> None:
    for number, state in enumerate(states[1:], start=1):
        for name in sorted({*states[0], *state}):
            shapes = [tuple(each[name].shape) if name in each else "missing" for each in (states[0], state)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{name} is {shapes[0]} in the first model, {shapes[1]} in model {number}")
