"""The hybrid layers of a converted model beside its teacher, without the rest of the converted model.

Everything outside the attention layers is the teacher's own in stage 1, so one model and the hybrid layers suffice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from grafts.bases import decoder_layers
from grafts.config import GraftedConfig
from grafts.hybrid.graft import HybridHeads
from grafts.hybrid.mixer import HybridAttention


@dataclass(frozen=True)
class Call:
    """What an attention layer of the teacher was called with, and what it gave [B, T, C]."""

    arguments: Mapping[str, Any]
    output: Tensor


class Mixers(nn.Module):
    """Hybrid layers by the number of their layer; called with the teacher's calls, gives their squared error."""

    supports_gradient_checkpointing = True

    def __init__(self, mixers: Mapping[int, HybridAttention]) -> None:
        super().__init__()
        self.mixers = nn.ModuleDict({str(layer): mixer for layer, mixer in mixers.items()})
        self.recompute = False

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """Recompute each layer in the backward pass."""
        self.recompute = True

    def forward(self, calls: Mapping[int, Call]) -> Tensor:
        """For each layer, the squared error [L] of its output: mean over channels, sum over tokens; float32."""
        return torch.stack([self.error(mixer, calls[int(layer)]) for layer, mixer in self.mixers.items()])

    def error(self, mixer: nn.Module, call: Call) -> Tensor:
        """The squared error of one layer."""
        if self.recompute and torch.is_grad_enabled():
            output_BTC = checkpoint(lambda: mixer(**call.arguments)[0], use_reentrant=False)
        else:
            output_BTC, _ = mixer(**call.arguments)
        return (output_BTC.float() - call.output.float()).square().mean(-1).sum()


def hybrid_graft(path: Path) -> HybridHeads:
    """The hybrid graft of the model in directory `path`; ValueError when it has none."""
    config = GraftedConfig.from_pretrained(path)
    found = [graft for graft in config.grafts if isinstance(graft, HybridHeads)]
    if not found:
        raise ValueError(f"the model in {path} has no hybrid heads")
    return found[0]


def load_mixers(path: Path, teacher: PreTrainedModel) -> Mixers:
    """The hybrid layers of the converted model in directory `path`, with weights of their own, in `teacher`'s type."""
    graft, names = hybrid_graft(path), {module: name for name, module in teacher.named_modules()}
    mixers = {}
    for index, layer in enumerate(decoder_layers(teacher)):
        if graft.full_heads[index] is None:
            continue
        mixer = graft.convert_layer(layer.self_attn)
        mixer.o_proj = copy.deepcopy(mixer.o_proj)
        mixer.load_state_dict(_tensors(path, f"{names[layer.self_attn]}."))
        mixers[index] = mixer.requires_grad_(True)
    return Mixers(mixers)


def put_mixers(trained: Mixers, student: PreTrainedModel) -> None:
    """Copy the weights of `trained` into the hybrid layers of `student`, in place."""
    layers = decoder_layers(student)
    for index, mixer in trained.mixers.items():
        layers[int(index)].self_attn.load_state_dict(mixer.state_dict())


@torch.no_grad()
def teacher_calls(teacher: PreTrainedModel, ids_BT: Tensor) -> dict[int, Call]:
    """Run the teacher's layers on `ids_BT` and keep every attention layer's call. No logits are computed."""
    calls: dict[int, Call] = {}
    with _recording(teacher, calls):
        teacher.base_model(input_ids=ids_BT, use_cache=False)
    return calls


@torch.no_grad()
def relative_errors(mixers: Mixers, teacher: PreTrainedModel, windows_NT: Tensor, batch_size: int) -> dict[int, float]:
    """For each hybrid layer, the squared error of its output as a share of the teacher's squared output."""
    errors: dict[int, float] = {}
    sizes: dict[int, float] = {}
    for ids_BT in windows_NT.split(batch_size):
        calls = teacher_calls(teacher, ids_BT.to(teacher.device))
        for (layer, call), error in zip(_matching(mixers, calls), mixers(calls).tolist(), strict=True):
            errors[layer] = errors.get(layer, 0.0) + error
            sizes[layer] = sizes.get(layer, 0.0) + call.output.float().square().mean(-1).sum().item()
    return {layer: errors[layer] / sizes[layer] for layer in errors}


def _matching(mixers: Mixers, calls: Mapping[int, Call]) -> list[tuple[int, Call]]:
    return [(int(layer), calls[int(layer)]) for layer in mixers.mixers]


@contextmanager
def _recording(teacher: PreTrainedModel, calls: dict[int, Call]) -> Iterator[None]:
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder_layers(teacher)):

            def record(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, at: int = index
            ) -> None:
                assert not args, "attention layers are called by keyword in transformers 5"
                calls[at] = Call(kwargs, output[0])

            hooks.callback(layer.self_attn.register_forward_hook(record, with_kwargs=True).remove)
        yield


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of the directory `path` whose names begin with `prefix`, without it."""
    found = {}
    for shard in sorted(path.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, it is no mapping
            found |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return found
