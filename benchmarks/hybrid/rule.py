"""`grafts.hybrid.delta_rule.chunked` and `torch_chunk_gated_delta_rule` of transformers on the same tensors."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from benchmarks.findings import CPU_SECONDS, SECONDS, Findings, Measure
from benchmarks.turns import take_turns
from grafts.hybrid.delta_rule import chunked
from grafts.hybrid.heads import unit_length

Rule = Callable[..., tuple[Tensor, Tensor]]


def measure(options: argparse.Namespace) -> Findings:
    """A row for each shape and contender, with the largest difference of their outputs."""
    way = "forward and backward" if options.backward else "forward"
    findings = Findings(f"float32, {way}, threads: {torch.get_num_threads()}; turns: {options.repetitions}")
    for shape in options.shapes:
        inputs, run = _inputs(*map(int, shape.split("x"))), _backward if options.backward else _forward
        contenders = {"regraft": partial(run, chunked, inputs), "transformers": partial(run, _theirs, inputs)}
        difference = (chunked(*inputs).output - _theirs(*inputs)[0]).abs().max().item()
        for name, turns in take_turns(contenders, options.repetitions).items():
            findings.add(shape, name, {**turns.figures(), Measure("difference"): difference})
    findings.compare("regraft", "transformers", SECONDS, CPU_SECONDS)
    return findings


def _inputs(num_tokens: int, num_heads: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, num_tokens, num_heads, width, generator=generator) for _ in range(3))
    g, beta = (torch.rand(1, num_tokens, num_heads, generator=generator) for _ in range(2))
    return unit_length(q), unit_length(k), v, -0.1 * g, beta


def _theirs(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return torch_chunk_gated_delta_rule(*inputs, output_final_state=True)


@torch.no_grad()
def _forward(rule: Rule, inputs: tuple[Tensor, ...]) -> None:
    rule(*inputs)


def _backward(rule: Rule, inputs: tuple[Tensor, ...]) -> None:
    rule(*(x.clone().requires_grad_() for x in inputs))[0].sum().backward()
