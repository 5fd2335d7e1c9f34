"""One layer of experts: ours, a loop over its tokens, and Mixtral's block in transformers, with the same weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, MixtralConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from benchmarks.findings import CPU_SECONDS, SECONDS, Findings
from benchmarks.turns import take_turns
from grafts.experts.feed_forward import ExpertFeedForward, naive_mix
from grafts.experts.graft import Experts
from grafts.experts.record import Record
from grafts.experts.routing import top_gates

IMPLEMENTATIONS: Final = ("eager", "grouped_mm")
TOP_K: Final = 2
TOLERANCE: Final = 1e-5
"""Of the outputs, as a share of the largest."""
Forward = Callable[[Tensor], Tensor]


def measure(options: argparse.Namespace) -> Findings:
    """A row for each contender, number of experts and number of tokens."""
    torch.manual_seed(0)
    way = "forward and backward" if options.backward else "forward"
    findings = Findings(
        f"Layer of width {options.width} and {_units(options)} units, {TOP_K} experts a token, float32, {way}, "
        f"threads: {torch.get_num_threads()}; turns: {options.repetitions}"
    )
    for num_experts in options.experts:
        layers = _layers(num_experts, options)
        for num_tokens in options.tokens:
            x_1TC, what = torch.randn(1, num_tokens, options.width), f"{num_experts} experts, tokens: {num_tokens}"
            if wrong := _unequal(layers, x_1TC):
                findings.broken.append(f"{what}: outputs are equal; {wrong}")
            run = _backward if options.backward else _forward
            turns = take_turns(
                {name: partial(run, layer, x_1TC) for name, layer in layers.items()}, options.repetitions
            )
            for name, taken in turns.items():
                findings.add(what, name, taken.figures())
    for name in list(layers)[1:]:
        findings.compare("regraft", name, SECONDS, CPU_SECONDS)
    return findings


def _units(options: argparse.Namespace) -> int:
    return options.width * 8 // 3


def _layers(num_experts: int, options: argparse.Namespace) -> dict[str, Forward]:
    shape = {"hidden_size": options.width, "intermediate_size": _units(options)}
    graft = Experts(num_experts=num_experts, top_k=TOP_K)
    ours = ExpertFeedForward(LlamaMLP(LlamaConfig(**shape)), graft, Record(TOP_K, 0, 0)).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    blocks = {f"Mixtral {name}": _mixtral(ours, name, shape) for name in IMPLEMENTATIONS}
    return {"regraft": ours, "naive loop": partial(_naive, ours), **blocks}


def _mixtral(ours: ExpertFeedForward, implementation: str, shape: Mapping[str, int]) -> nn.Module:
    config = MixtralConfig(**shape, num_local_experts=len(ours.experts), num_experts_per_tok=TOP_K)
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config).eval()
    fused = [torch.cat([expert.gate_proj.weight, expert.up_proj.weight]) for expert in ours.experts]
    with torch.no_grad():
        block.gate.weight.copy_(ours.router.weight)
        block.experts.gate_up_proj.copy_(torch.stack(fused))
        block.experts.down_proj.copy_(torch.stack([expert.down_proj.weight for expert in ours.experts]))
    return block


def _naive(layer: ExpertFeedForward, x_1TC: Tensor) -> Tensor:
    x_TC = x_1TC[0]
    gates_TK, experts_TK = top_gates(layer.router(x_TC), TOP_K, renormalise=True)
    return naive_mix(x_TC, gates_TK, experts_TK, layer.experts)[None]


@torch.no_grad()
def _unequal(layers: Mapping[str, Forward], x_1TC: Tensor) -> str:
    """Which contender says something else than ours, and by how much; empty when none does."""
    wanted = layers["regraft"](x_1TC)
    gaps = {name: ((layer(x_1TC) - wanted).abs().max() / wanted.abs().max()).item() for name, layer in layers.items()}
    return ", ".join(f"{name} is off by {gap:.1e}" for name, gap in gaps.items() if not gap <= TOLERANCE)


@torch.no_grad()
def _forward(layer: Forward, x_1TC: Tensor) -> None:
    layer(x_1TC)


def _backward(layer: Forward, x_1TC: Tensor) -> None:
    layer(x_1TC.clone().requires_grad_()).sum().backward()
