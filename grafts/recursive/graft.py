"""The graft `recursive`: a block of layers that runs several times with one set of weights, relaxed by low ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from grafts.bases import decoder_layers
from grafts.graft import Graft, Place, Sources
from grafts.recursive.core import Core, Order
from grafts.recursive.relaxed import RelaxedLinear, mean, truncated_svd, zero_adapter


class Recursive(Graft):
    """Layer l runs with W'_{k(l)} + A_l B_l, k cycling over a block: Relaxed Recursive Transformers (2410.20672)."""

    name: ClassVar[str] = "recursive"
    place: ClassVar[Place] = "depth"

    loops: Annotated[int, Ge(1)]
    """How often the block runs; 1: every layer stays as it is."""
    begin: Annotated[int, Ge(0)] = 0
    """Layers before the block that keep weights of their own."""
    end: Annotated[int, Ge(0)] = 0
    """Layers after the block that keep weights of their own."""
    order: Order = "cycle"
    """How the block repeats: whole after whole (a b a b), or layer by layer (a a b b)."""
    initialisation: Literal["average", "stepwise", "lower"] = "average"
    """What a shared weight starts as: the mean over the layers that share it, one of evenly spaced layers, or the
    first of those that share it."""
    rank: Annotated[int, Ge(0)] = 0
    """Rank of the difference that each layer has of its own at every linear; 0: none."""
    adapter: Literal["svd", "zero"] = "svd"
    """What that difference starts as: the best approximation of what sharing took away, or nothing."""
    norms: Literal["per_depth", "shared"] = "per_depth"
    """Whether each layer keeps norms and biases of its own."""

    def core(self, base: PretrainedConfig) -> Core:
        """Which layer shares with which. ValueError when the layers do not divide."""
        return Core(base.num_hidden_layers, self.loops, self.begin, self.end, self.order)

    def check(self, base: PretrainedConfig, earlier: Sequence[Graft]) -> None:
        """ValueError unless the layers divide into loops, and layers that share are of one kind."""
        if earlier:
            raise ValueError(
                f"'recursive' goes on a model without other grafts, this one has '{earlier[-1].name}': "
                "its layers may differ in more than their weights"
            )
        self.core(base).require_one_kind(base.to_dict())

    def build(self, model: PreTrainedModel) -> None:
        """Declare what is shared, and put differences of zero beside the linears."""
        core, layers = self.core(model.config), decoder_layers(model)
        for layer, owner in core.ties():
            self._relax(layers[layer])
            for name in self._shared_names(layers[layer]):
                model.share(f"model.layers.{layer}.{name}", f"model.layers.{owner}.{name}")
        if self.loops > 1:
            for owner in core.owners:
                self._relax(layers[owner])

    def convert(self, model: PreTrainedModel, sources: Sources) -> None:
        """The same, with shared weights and differences made of the weights that the layers have."""
        self.build(model)
        if self.loops == 1:
            return
        core, layers = self.core(model.config), decoder_layers(model)
        shared = dict(self._shared_weights(core, layers))  # all of them, before the first is written
        generator = torch.Generator().manual_seed(sources.seed)
        for (owner, name), weight in shared.items():
            linear, is_matrix = name.removesuffix(".linear.weight"), name.endswith(".linear.weight")
            for layer in core.runs(owner) if self.rank and is_matrix else ():
                relaxed = layers[layer].get_submodule(linear)
                assert isinstance(relaxed, RelaxedLinear), f"{linear} was relaxed above"
                self._fit(relaxed, weight, generator)
            layers[owner].get_parameter(name).data.copy_(weight)

    def identity(self, base: PretrainedConfig) -> Self:  # noqa: ARG002
        """One loop."""
        return self.model_copy(update={"loops": 1})

    def _relax(self, layer: nn.Module) -> None:
        if self.rank == 0:
            return
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        for name, linear in linears:
            layer.set_submodule(name, RelaxedLinear(linear, self.rank))

    def _shared_names(self, layer: nn.Module) -> list[str]:
        """The parameters that a layer has in common with others: matrices, and vectors where norms are shared."""
        own = {f"{name}.{part}" for name, module in layer.named_modules() for part in _own_parts(module)}
        names = [(name, parameter.ndim) for name, parameter in layer.named_parameters() if name not in own]
        return [name for name, ndim in names if ndim > 1 or self.norms == "shared"]

    def _shared_weights(self, core: Core, layers: nn.ModuleList) -> Iterator[tuple[tuple[int, str], Tensor]]:
        """What each shared parameter starts as, by its owner and its name in the layer."""
        lower, spaced = list(core.owners), core.spaced()
        for position, owner in enumerate(core.owners):
            for name in self._shared_names(layers[owner]):
                if self.initialisation == "average":
                    yield (owner, name), mean([layers[layer].get_parameter(name).data for layer in core.runs(owner)])
                else:
                    giver = (spaced if self.initialisation == "stepwise" else lower)[position]
                    yield (owner, name), layers[giver].get_parameter(name).data.clone()

    def _fit(self, relaxed: RelaxedLinear, shared_OI: Tensor, generator: torch.Generator) -> None:
        """Give `relaxed`, which still has its own weight, its difference from the shared one."""
        if self.adapter == "zero":
            left, right = zero_adapter(relaxed.left.data, relaxed.right.data, generator)
        else:
            own_OI = relaxed.linear.weight.data
            wide = torch.promote_types(own_OI.dtype, torch.float32)
            left, right = truncated_svd(own_OI.to(wide) - shared_OI.to(wide), relaxed.right.shape[0])
        relaxed.left.data.copy_(left)
        relaxed.right.data.copy_(right)


def _own_parts(module: nn.Module) -> tuple[str, ...]:
    return ("left", "right") if isinstance(module, RelaxedLinear) else ()
