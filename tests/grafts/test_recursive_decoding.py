"""Depth-wise decoding: generate where nothing leaves early, and the same text however many rows share the block."""

import pytest
import torch
from transformers import PreTrainedModel

from grafts import apply
from grafts.recursive.decoding import DepthwiseDecoder, confident
from grafts.recursive.graft import Recursive
from tests.grafts.families import FAMILIES, tiny, tokens

PATTERN = ["sliding_attention", "full_attention"] * 3
LENGTHS = (1, 5, 13, 9, 2)
NEW = 12


def looped(family: str = "llama", **settings) -> PreTrainedModel:
    layer_types = {"layer_types": PATTERN} if family in ("qwen2", "gemma3_text") else {}
    model = tiny(family, num_hidden_layers=6, **layer_types).to(torch.float64)
    return apply(model, [Recursive(**{"loops": 3, "rank": 4, **settings})])


def prompts() -> list[list[int]]:
    return [tokens(1, length, seed=length)[0].tolist() for length in LENGTHS]


def decode(model: PreTrainedModel, num_rows: int = 3, leaves=None) -> list:
    return DepthwiseDecoder(model, num_rows=num_rows, max_length=32, leaves=leaves).generate(prompts(), NEW)


def generated(model: PreTrainedModel) -> list[list[int]]:
    found = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_without_leaving_it_is_generate(family: str):
    model = looped(family)
    made = decode(model)
    assert [one.tokens for one in made] == generated(model)
    assert {loops for one in made for loops in one.loops} == {3}


@pytest.mark.parametrize(
    "settings",
    [{"begin": 1, "end": 2, "loops": 3}, {"rank": 0, "norms": "shared"}, {"begin": 2, "loops": 2, "rank": 0}],
)
def test_with_layers_of_their_own_and_with_nothing_but_shared_ones(settings: dict):
    model = looped(**settings)
    assert [one.tokens for one in decode(model)] == generated(model)


def test_rows_do_not_change_what_is_decoded():
    model, leaves = looped(begin=1, end=2), confident(0.06)
    alone = decode(model, 1, leaves)
    loops = [loop for one in alone for loop in one.loops]
    assert len(set(loops)) > 1, "some leave, some do not"
    for num_rows in (2, 5):
        assert decode(model, num_rows, leaves) == alone


def test_loops_that_add_nothing_can_be_left_out():
    """The keys and values that a token leaves behind are then those that it would have made."""
    model = looped("qwen3", rank=32, loops=2)
    for layer in model.model.layers[3:]:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.left.data = torch.eye(32, dtype=torch.float64)
            linear.right.data = -linear.linear.weight.data
    made = decode(model, 3, confident(0.0))
    assert {loop for one in made for loop in one.loops} == {1}
    assert [one.tokens for one in made] == generated(model)


def test_it_stops_at_a_token_and_keeps_it():
    model = looped()
    whole = decode(model)
    stop = whole[2].tokens[4]
    made = DepthwiseDecoder(model, num_rows=2, max_length=32).generate(prompts(), NEW, [stop])
    for one, other in zip(made, whole, strict=True):
        end = other.tokens.index(stop) + 1 if stop in other.tokens else NEW
        assert one.tokens == other.tokens[:end]


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ValueError, match="this one has: none"):
        DepthwiseDecoder(tiny(), num_rows=1, max_length=8)
    with pytest.raises(ValueError, match="order: sequence"):
        DepthwiseDecoder(looped(order="sequence"), num_rows=1, max_length=8)
    with pytest.raises(ValueError, match="num_rows is 0: at least one sequence"):
        DepthwiseDecoder(looped(), num_rows=0, max_length=8)
    decoder = DepthwiseDecoder(looped(), num_rows=1, max_length=8)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decoder.generate([[3], []], 1)
    with pytest.raises(ValueError, match="prompt 0 has 5 tokens, 10 with those to come: max_length is 8"):
        decoder.generate([[3] * 5], 5)
