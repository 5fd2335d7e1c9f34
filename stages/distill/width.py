"""Width pruning: a model with fewer heads, feed-forward channels or hidden channels, as the same standard class.

Which ones stay is decided elsewhere; this only cuts. Dropping a head or a channel computes what the whole model
computes when the projection behind it is zero there. Dropping hidden channels that carry nothing changes nothing
either, once the norms know that they average over fewer: their weights are scaled for that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from stages.distill.shapes import Shape


@dataclass(frozen=True)
class Kept:
    """What stays, ascending: in each layer key-value groups (with their queries) and channels; hidden channels."""

    groups: Sequence[Sequence[int]]
    channels: Sequence[Sequence[int]]
    hidden: Sequence[int]


def narrow(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A new model of `model`'s class, on the CPU in its dtype, with copies of what is `kept` alone."""
    shape = Shape.of(model.config.to_dict())
    config = _config(model.config, shape, kept)
    with no_init_weights():
        narrowed = type(model)._from_config(config, dtype=model.dtype)
    cuts = _Cuts(shape, kept)
    weights = {name: cuts.cut(name, tensor.cpu()) for name, tensor in model.state_dict().items()}
    narrowed.load_state_dict(weights, strict=True)
    narrowed.tie_weights()  # building without initial values builds without ties
    narrowed.generation_config = copy.deepcopy(model.generation_config)
    return narrowed.eval()


def _config(config: PretrainedConfig, shape: Shape, kept: Kept) -> PretrainedConfig:
    """`config` in the sizes of `kept`. The size of a head stays, so it must be written down."""
    fields = config.to_dict()
    groups = len(kept.groups[0])
    sizes = {
        "hidden_size": len(kept.hidden),
        "head_dim": shape.head_dim,
        "num_attention_heads": groups * shape.heads_in_group,
        "num_key_value_heads": groups,
        "intermediate_size": len(kept.channels[0]),
    }
    return type(config)(**{**fields, **sizes})


class _Cuts:
    """Which rows and columns of each tensor stay."""

    def __init__(self, shape: Shape, kept: Kept) -> None:
        self.hidden = torch.tensor(kept.hidden)
        self.channels = [torch.tensor(channels) for channels in kept.channels]
        self.keys = [_rows(groups, shape.head_dim) for groups in kept.groups]
        self.queries = [_rows(groups, shape.head_dim * shape.heads_in_group) for groups in kept.groups]
        self.norm_scale = (shape.hidden_size / len(kept.hidden)) ** 0.5
        self.hidden_size = shape.hidden_size

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """The part of the tensor `name` that stays, a copy."""
        parts = name.split(".")
        module, layer = parts[-2], int(parts[2]) if parts[1] == "layers" else 0
        rows = self._rows(module, layer)
        if tensor.ndim == 1:
            return self._norm(tensor) if rows is None else tensor[rows]
        columns = {"o_proj": self.queries[layer], "down_proj": self.channels[layer]}.get(module, self.hidden)
        return (tensor if rows is None else tensor[rows])[:, columns]

    def _rows(self, module: str, layer: int) -> Tensor | None:
        """Outputs of the linear `module` that stay; None for what has all of them, or none."""
        match module:
            case "q_proj":
                return self.queries[layer]
            case "k_proj" | "v_proj":
                return self.keys[layer]
            case "gate_proj" | "up_proj":
                return self.channels[layer]
            case "o_proj" | "down_proj":
                return self.hidden
        return None

    def _norm(self, weight: Tensor) -> Tensor:
        """A norm over hidden channels averages over fewer from now on; one over a head is left alone."""
        if weight.shape[0] != self.hidden_size or len(self.hidden) == self.hidden_size:
            return weight.clone()
        return (weight[self.hidden].float() * self.norm_scale).to(weight.dtype)


def _rows(groups: Sequence[int], size: int) -> Tensor:
    return (torch.tensor(groups)[:, None] * size + torch.arange(size)).flatten()
