"""Tokens per second of a recursive model whose tokens leave early, beside `generate`, where every token runs all loops.

    python -m benchmarks.recursive [--loops 2] [--rank 16] [--rows 8]

A random model, of the shape of SmolLM2-135M if nothing else is said, so that the figures are of speed alone: which
tokens leave after a loop is drawn by lot. Without an exit rule the head runs after the last loop alone; with one, after
each. `generate` gets all prompts of a batch at one length, which is
its best case. The contenders take turns in one process, in opposite orders, after one turn each that does not count.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.findings import Findings, Measure
from benchmarks.publish import add_json_option, publish
from benchmarks.turns import take_turns
from grafts import apply
from grafts.recursive.decoding import DepthwiseDecoder
from grafts.recursive.graft import Recursive

SPEED, LOOPS = Measure("tokens/s", "more"), Measure("loops a token")
GENERATE = "generate"


def main() -> None:
    options = _options()
    publish(measure(options), options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recursive", description=__doc__.splitlines()[0])
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--rows", type=int, default=8, help="sequences at a time")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="to decode after each prompt")
    parser.add_argument("--repetitions", type=int, default=5)
    add_json_option(parser)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> Findings:
    """A row for `generate` and for each share of tokens that leave after each loop."""
    torch.manual_seed(0)
    model = _model(options)
    ids_NT = torch.randint(3, model.config.vocab_size, (options.prompts, options.prompt_tokens))
    shares, loops = (0.0, 0.25, 0.5, 0.75, 1.0), dict[float, float]()

    def depthwise(share: float) -> None:
        lot = torch.Generator().manual_seed(1)

        def leaves(logits_NV: Tensor) -> Tensor:
            return torch.rand(len(logits_NV), generator=lot) < share

        length = options.prompt_tokens + options.tokens
        rule = leaves if share else None
        decoder = DepthwiseDecoder(model, num_rows=options.rows, max_length=length, leaves=rule)
        made = decoder.generate(ids_NT.tolist(), options.tokens)
        loops[share] = sum(sum(one.loops) for one in made) / (options.prompts * options.tokens)

    contenders = {_named(share): (lambda share=share: depthwise(share)) for share in shares}
    turns = take_turns({GENERATE: lambda: _generate(model, ids_NT, options), **contenders}, options.repetitions)
    total = options.prompts * options.tokens
    findings = Findings(_setting(options))
    for name, loop in zip(turns, (options.loops, *(loops[share] for share in shares)), strict=True):
        findings.add("", name, {SPEED: [total / turn.seconds for turn in turns[name]], LOOPS: loop})
    for name in contenders:
        findings.compare(name, GENERATE, SPEED)
    return findings


def _named(share: float) -> str:
    return f"depth-wise, {share:.0%} leave" if share else "depth-wise, no exit rule"


def _setting(options: argparse.Namespace) -> str:
    return (
        f"Random Llama of width {options.width}, {options.layers} layers, vocabulary {options.vocabulary:,}, "
        f"{options.loops} loops, rank {options.rank}; {options.prompts} prompts of {options.prompt_tokens} tokens, "
        f"{options.tokens} more each, {options.rows} rows, threads: {torch.get_num_threads()}; "
        f"turns: {options.repetitions}"
    )


def _model(options: argparse.Namespace) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=(heads := options.width // 64) // (3 if heads % 3 == 0 else 4),
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    return apply(LlamaForCausalLM(config).eval(), [Recursive(loops=options.loops, rank=options.rank)])


@torch.inference_mode()
def _generate(model: PreTrainedModel, ids_NT: Tensor, options: argparse.Namespace) -> None:
    for ids_BT in ids_NT.split(options.rows):
        model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=options.tokens, do_sample=False)


if __name__ == "__main__":
    main()
