"""Two grafts that exist for tests: layers that share parameters, and an adapter that starts as the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from grafts.bases import decoder_layers
from grafts.graft import Graft, Place, Sources

REGISTERED = {"tied_mlps": "tests.grafts.toys:TiedMlps", "adapter": "tests.grafts.toys:Adapter"}


class TiedMlps(Graft):
    """The feed-forward weights of layer `source` serve the layers `targets` too."""

    name: ClassVar[str] = "tied_mlps"
    place: ClassVar[Place] = "depth"

    source: int = 0
    targets: tuple[int, ...] = (1,)

    def check(self, base: PretrainedConfig, _earlier: Sequence[Graft]) -> None:
        if max(self.source, *self.targets, 0) >= base.num_hidden_layers:
            raise ValueError("no such layer")

    def build(self, model: PreTrainedModel) -> None:
        layers = decoder_layers(model)
        for name, _ in layers[self.source].mlp.named_parameters():
            for target in self.targets:
                model.share(f"model.layers.{target}.mlp.{name}", f"model.layers.{self.source}.mlp.{name}")

    def convert(self, model: PreTrainedModel, sources: Sources) -> None:
        self.build(model)

    def identity(self, base: PretrainedConfig) -> Self:
        return self.model_copy(update={"targets": ()})


class Adapted(nn.Module):
    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        weight = next(mlp.parameters())
        self.mlp = mlp
        self.down = nn.Linear(width, 2, bias=False, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(2, width, bias=False, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.up(self.down(x))


class Adapter(Graft):
    """A low-rank path beside each feed-forward part."""

    name: ClassVar[str] = "adapter"
    place: ClassVar[Place] = "adapters"

    def check(self, base: PretrainedConfig, _earlier: Sequence[Graft]) -> None: ...

    def build(self, model: PreTrainedModel) -> None:
        for layer in decoder_layers(model):
            layer.mlp = Adapted(layer.mlp, model.config.hidden_size)

    def convert(self, model: PreTrainedModel, sources: Sources) -> None:
        self.build(model)
        with torch.no_grad():
            for layer in decoder_layers(model):
                layer.mlp.up.weight.zero_()

    def identity(self, base: PretrainedConfig) -> Self:
        return self
