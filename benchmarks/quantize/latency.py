"""What corrections cost at inference: shared right factors, one for each linear, half of the groups, and none."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.findings import Findings, Measure
from benchmarks.turns import take_turns
from grafts import apply
from grafts.lowrank.graft import Group, LowRank
from grafts.lowrank.module import Projection
from grafts.quantised.graft import QuantisedLinears
from grafts.quantised.linear import hold_weights

SHARED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears of a decoder layer of Llama type that read the same input."""
READ, WRITE = Measure("read s", "less"), Measure("write ms/token", "less")
PRODUCTS = Measure("B-products a layer", "less")


@torch.inference_mode()
def measure(options: argparse.Namespace) -> Findings:
    """A row for each context length and model: reading it, then writing a token after it."""
    torch.manual_seed(0)
    models = _models(options)
    findings = Findings(
        f"Random Llama of width {options.width}, {options.layers} layers, 4 bit, rank {options.rank}, "
        f"threads: {torch.get_num_threads()}; turns: {options.repetitions}"
    )
    for length in options.lengths:
        ids = torch.randint(models["plain"].config.vocab_size, (1, length))
        reading = take_turns({name: _reader(model, ids) for name, model in models.items()}, options.repetitions)
        writers = {name: _writer(model, _reader(model, ids)(), options.tokens) for name, model in models.items()}
        writing = take_turns(writers, options.repetitions)
        for name, model in models.items():
            write = [turn.seconds / options.tokens * 1e3 for turn in writing[name]]
            products = _products(model) / options.layers
            figures = {PRODUCTS: products, READ: [turn.seconds for turn in reading[name]], WRITE: write}
            findings.add(f"{length} tokens", name, figures)
    for name in ("glowq", "glowq_s", "plain"):
        findings.compare(name, "separate", READ, WRITE)
    return findings


def _models(options: argparse.Namespace) -> dict[str, PreTrainedModel]:
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 256,
    )
    plain = apply(LlamaForCausalLM(config).eval(), [QuantisedLinears(bits=4, group_size=64, symmetric=True)])
    hold_weights(plain)
    groups = [(f"model.layers.{layer}", members) for layer in range(options.layers) for members in SHARED]
    kept = groups[::2]
    return {
        "plain": plain,
        "separate": _corrected(
            plain, [(layer, (name,)) for layer, members in groups for name in members], options.rank
        ),
        "glowq": _corrected(plain, groups, options.rank),
        "glowq_s": _corrected(plain, kept, options.rank),
    }


def _corrected(plain: PreTrainedModel, groups: Sequence[tuple[str, tuple[str, ...]]], rank: int) -> PreTrainedModel:
    named = tuple(Group(members=tuple(f"{layer}.{name}" for name in members), rank=rank) for layer, members in groups)
    model = apply(copy.deepcopy(plain), [LowRank(groups=named)])
    for name, parameter in model.named_parameters():
        if ".correction." in name:
            nn.init.normal_(parameter, std=0.01)
    hold_weights(model)
    return model


def _products(model: PreTrainedModel) -> int:
    return sum(isinstance(module, Projection) for module in model.modules())


def _reader(model: PreTrainedModel, ids: Tensor) -> Callable[[], DynamicCache]:
    def read() -> DynamicCache:
        return model(ids, use_cache=True, logits_to_keep=1).past_key_values

    return read


def _writer(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> Callable[[], None]:
    def write() -> None:
        for _ in range(tokens):
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
        cache.crop(-tokens)

    return write
