"""Tokens a second of rollouts over turns: the engine, batched `generate`, and `generate` one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from benchmarks.sources import source_model
from benchmarks.turns import take_turns
from grafts.loader import load_model
from stages.agent.rollout.engine import Request, Sampling
from stages.agent.rollout.transformers_engine import TransformersEngine
from stages.evaluate.generation import written

Write = Callable[[Sequence[list[int]]], list[list[int]]]
"""The turns that follow contexts."""
NO_STOP = -1


def measure(options: argparse.Namespace) -> None:
    with TemporaryDirectory() as directory:
        path = options.model or source_model(Path(directory))
        model = load_model(path, dtype=getattr(torch, options.dtype)).to(options.device)
    engine = TransformersEngine(model, NO_STOP, Sampling())
    contenders = {
        "engine": lambda: _rollouts(options, _engine(engine, options), engine.forget),
        "generate, batches": lambda: _rollouts(options, lambda contexts: _generate(model, contexts, options)),
        "generate, one by one": lambda: _rollouts(
            options, lambda contexts: [_generate(model, [context], options)[0] for context in contexts]
        ),
    }
    turns = take_turns(contenders, options.repetitions)
    num_tokens, slowest = options.rollouts * options.turns * options.turn_tokens, turns["generate, one by one"]
    print(f"{options.rollouts} rollouts of {options.turns} turns: {num_tokens} tokens written\n")
    print("|  | tokens/s | CPU s | faster |\n|---|---|---|---|")
    for name, turn in turns.items():
        faster = slowest.seconds / turn.seconds
        print(f"| {name} | {num_tokens / turn.seconds:.1f} | {turn.cpu_seconds:.1f} | {faster:.2f} |")


def _rollouts(options: argparse.Namespace, write: Write, forget: Callable[[], None] = lambda: None) -> None:
    forget()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(100, 5000, (options.prompt,), generator=generator).tolist()
    contexts = [list(prompt) for _ in range(options.rollouts)]
    for _ in range(options.turns):
        for context, turn in zip(contexts, write(contexts), strict=True):
            told = torch.randint(100, 5000, (options.told,), generator=generator).tolist()
            context += turn + told


def _engine(engine: TransformersEngine, options: argparse.Namespace) -> Write:
    def write(contexts: Sequence[list[int]]) -> list[list[int]]:
        requests = [Request(key, list(ids), key, options.turn_tokens) for key, ids in enumerate(contexts)]
        return [turn.ids for turn in engine.write(requests)]

    return write


def _generate(model: PreTrainedModel, contexts: Sequence[list[int]], options: argparse.Namespace) -> list[list[int]]:
    """Contexts of one length each: equal turns leave nothing to pad."""
    ids = torch.tensor(contexts, device=model.device)
    found = written(
        model,
        ids,
        options.turn_tokens,
        None,
        min_new_tokens=options.turn_tokens,
        do_sample=True,
        top_k=0,
    )
    return found[:, ids.shape[1] :].tolist()
