"""Reading, writing and remembering a context: a model and hybrids of it that keep fewer and fewer heads."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks.findings import Findings, Measure
from benchmarks.turns import take_turns
from grafts import apply
from grafts.hybrid.cache import cache_bytes
from grafts.hybrid.graft import HybridHeads
from grafts.loader import load_model

READ, WRITE = Measure("read s", "less"), Measure("write ms/token", "less")
CACHE = Measure("cache MiB", "less")


def measure(options: argparse.Namespace) -> Findings:
    """A row for each context length and model."""
    models = _models(options)
    name = options.model.name if options.model else "Random Llama of 23.1 million parameters"
    findings = Findings(
        f"{name}, {options.dtype}, {options.device}, threads: {torch.get_num_threads()}, whole {options.by}s kept; "
        f"turns: {options.repetitions}"
    )
    for length in options.lengths:
        ids = torch.randint(models["full"].config.vocab_size, (1, length), device=options.device)
        reading = take_turns({name: _reader(model, ids) for name, model in models.items()}, options.repetitions)
        caches = {name: _reader(model, ids)() for name, model in models.items()}
        kept = {name: cache_bytes(cache) / 2**20 for name, cache in caches.items()}
        writers = {name: _writer(model, caches[name], options.tokens) for name, model in models.items()}
        writing = take_turns(writers, options.repetitions)
        for name in models:
            write = [turn.seconds / options.tokens * 1e3 for turn in writing[name]]
            figures = {READ: [turn.seconds for turn in reading[name]], WRITE: write, CACHE: kept[name]}
            findings.add(f"{length} tokens", name, figures)
    for name in list(models)[1:]:
        findings.compare(name, "full", READ, WRITE, CACHE)
    return findings


def _models(options: argparse.Namespace) -> dict[str, PreTrainedModel]:
    dtype = getattr(torch, options.dtype)
    full = load_model(options.model, dtype=dtype) if options.model else _random_model().to(dtype)
    models = {"full": full}
    for share in options.kept:
        graft = HybridHeads(full_heads=_kept(full.config, share, options.by))
        models[f"1 in {share}"] = apply(copy.deepcopy(full), [graft])
    return {name: model.to(options.device).eval() for name, model in models.items()}


def _kept(config: PretrainedConfig, share: int, by: str) -> tuple[tuple[int, ...], ...]:
    """Every `share`-th head or key-value group of the whole model."""
    size = config.num_attention_heads // config.num_key_value_heads if by == "group" else 1
    units = config.num_attention_heads // size
    return tuple(
        tuple(
            unit * size + head for unit in range(units) if (layer * units + unit) % share == 0 for head in range(size)
        )
        for layer in range(config.num_hidden_layers)
    )


def _random_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2**20,
    )
    return LlamaForCausalLM(config)


def _reader(model: PreTrainedModel, ids: Tensor) -> Callable[[], DynamicCache]:
    def read() -> DynamicCache:
        with torch.no_grad():
            return model(ids, use_cache=True, logits_to_keep=1).past_key_values

    return read


def _writer(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> Callable[[], None]:
    """Goes on from wherever the cache is: turns lengthen it by `tokens` each, for all contenders alike."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)

    def write() -> None:
        with torch.no_grad():
            for _ in range(tokens):
                model(token, past_key_values=cache, use_cache=True)

    return write
