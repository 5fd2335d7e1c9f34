"""What each layer, head and channel of a model contributes on ordinary text: what pruning goes by.

Activations are measured in one pass over the calibration text, as arXiv 2407.14679 and 2408.11796 do: no gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from grafts.arithmetic import computing
from grafts.bases import decoder_layers
from stages.distill.shapes import Shape
from stages.evaluate.likelihood import likelihood
from stages.forwarding import forwarding
from stages.stage import Progress


@dataclass(frozen=True)
class Importance:
    """Scores, float64 on the CPU: the higher, the more is lost."""

    influence: Tensor
    """[L]: 1 - cosine of a layer's input and output, mean over tokens (ShortGPT, arXiv 2403.03853)."""
    groups: Tensor
    """[L, G]: norm of the outputs of a key-value group's heads, before the output projection, mean over tokens."""
    channels: Tensor
    """[L, F]: absolute activation of a feed-forward channel, mean over tokens."""
    hidden: Tensor
    """[H]: absolute value of a hidden channel after each norm, mean over tokens, sum over norms."""


@torch.no_grad()
def measure(model: PreTrainedModel, batches: Sequence[Tensor]) -> Importance:
    """The importances of `model` on `batches` of token ids [B, T]."""
    sums = _Sums(model.config.num_hidden_layers, Shape.of(model.config.to_dict()))
    handles = _handles(model, sums)
    try:
        with computing(model):
            for ids_BT in batches:
                model(input_ids=ids_BT.to(model.device), use_cache=False, logits_to_keep=1)
                sums.num_tokens += ids_BT.numel()
    finally:
        for handle in handles:
            handle.remove()
    return sums.means()


@torch.no_grad()
def ablation(model: PreTrainedModel, windows_NT: Tensor, batch_size: int, progress: Progress | None = None) -> Tensor:
    """Rise of the mean negative log-likelihood, in nats a token, when a layer hands its input on; [L], float64."""
    layers, rises = decoder_layers(model), []
    with computing(model):
        whole = likelihood(model, windows_NT, batch_size=batch_size).nats_per_token
        for index, layer in enumerate(layers):
            with without(layer):
                rises.append(likelihood(model, windows_NT, batch_size=batch_size).nats_per_token - whole)
            if progress:
                progress(index + 1, len(layers), "layers")
    return torch.tensor(rises, dtype=torch.float64)


@contextmanager
def without(layer: nn.Module) -> Iterator[None]:
    """Let `layer` hand its input on, for a while."""
    with forwarding(layer, lambda hidden_states, *_args, **_options: hidden_states):
        yield


def hidden_norms(model: PreTrainedModel) -> list[nn.Module]:
    """The norms over all hidden channels, first to last: a vector as long as a hidden state is their only parameter."""
    size = model.config.hidden_size
    return [module for module in model.modules() if [p.shape for p in module.parameters()] == [(size,)]]


class _Sums:
    """Sums over the tokens seen so far."""

    def __init__(self, num_layers: int, shape: Shape) -> None:
        self.shape, self.num_tokens = shape, 0
        self.influence = torch.zeros(num_layers, dtype=torch.float64)
        self.groups = torch.zeros(num_layers, shape.num_groups, dtype=torch.float64)
        self.channels = torch.zeros(num_layers, shape.num_channels, dtype=torch.float64)
        self.hidden = torch.zeros(shape.hidden_size, dtype=torch.float64)

    def layer(self, index: int, x_BTH: Tensor, y_BTH: Tensor) -> None:
        """Add the input and output of a layer."""
        self.influence[index] += (1 - functional.cosine_similarity(x_BTH.float(), y_BTH.float(), dim=-1)).sum().cpu()

    def heads(self, index: int, x_BTD: Tensor) -> None:
        """Add the input of a layer's output projection."""
        norm_BTG = x_BTD.float().unflatten(-1, (self.shape.num_groups, -1)).norm(dim=-1)
        self.groups[index] += norm_BTG.sum((0, 1)).cpu()

    def feed_forward(self, index: int, x_BTF: Tensor) -> None:
        """Add the input of a feed-forward part's second projection."""
        self.channels[index] += x_BTF.float().abs().sum((0, 1)).cpu()

    def norm(self, y_BTH: Tensor) -> None:
        """Add the output of a norm."""
        self.hidden += y_BTH.float().abs().sum((0, 1)).cpu()

    def means(self) -> Importance:
        """Divided by the number of tokens."""
        scores = (self.influence, self.groups, self.channels, self.hidden)
        return Importance(*(score / self.num_tokens for score in scores))


def _handles(model: PreTrainedModel, sums: _Sums) -> list[RemovableHandle]:
    """Hooks that feed `sums`."""
    handles = []
    for index, layer in enumerate(decoder_layers(model)):
        handles += [
            layer.register_forward_hook(lambda _module, x, y, index=index: sums.layer(index, x[0], _tensor(y))),
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, x, index=index: sums.heads(index, x[0])),
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _module, x, index=index: sums.feed_forward(index, x[0])
            ),
        ]
    norms = hidden_norms(model)
    return handles + [norm.register_forward_hook(lambda _module, _x, y: sums.norm(y)) for norm in norms]


def _tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
