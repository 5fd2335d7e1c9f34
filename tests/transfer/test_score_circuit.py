"""A hand-built induction circuit: scoring finds its two heads, not the one that looks at the same place for nothing.

The text is `… K B C … K B`, after which C comes next. The head of layer 0 writes at every token which one it follows;
the head of layer 1 looks for the token that follows the present one, and copies it. The bystander is that head again,
with an output projection of zeros.
"""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.transfer.attribution import Attribution
from stages.transfer.bench import Bench
from stages.transfer.heads import HeadShape
from stages.transfer.patching import Effects, Patching
from stages.transfer.probing import Pair
from stages.transfer.ranking import capability_score
from stages.transfer.recording import Body
from stages.transfer.survey import Inquiry, Survey

VOCABULARY = 16
HEAD_DIM = 2 * VOCABULARY
SHAPE = HeadShape(num_layers=2, num_heads=4, num_groups=2)
PREVIOUS, INDUCTION, BYSTANDER = (0, 2), (1, 0), (1, 1)

TOKEN, BEFORE, NEXT = (slice(block * VOCABULARY, (block + 1) * VOCABULARY) for block in range(3))
"""Parts of the residual stream: the token, the one before it, the one to come."""
WIDTH = 3 * VOCABULARY


def circuit() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.copy_(0.002 * torch.randn_like(parameter))
        model.model.embed_tokens.weight[:, TOKEN] += torch.eye(VOCABULARY)
        model.lm_head.weight[:, NEXT] += 4 * torch.eye(VOCABULARY)
        build_previous(model)
        build_induction(model)
    return model


def build_previous(model: LlamaForCausalLM) -> None:
    """Queries and keys that are constant, and turned by position so that they meet one token apart."""
    attention, (_, head) = model.model.layers[0].self_attn, PREVIOUS
    group, half = head // 2, HEAD_DIM // 2
    frequencies = 1e12 ** (-torch.arange(half) / half)
    fast = (frequencies > 1e-3).float() * 12
    attention.q_proj.bias[rows(head)] = torch.cat([fast * frequencies.cos(), -fast * frequencies.sin()])
    attention.k_proj.bias[rows(group)] = torch.cat([fast, torch.zeros(half)])
    attention.v_proj.weight[rows(group)][:VOCABULARY, TOKEN] += torch.eye(VOCABULARY) / math.sqrt(WIDTH)
    attention.o_proj.weight[BEFORE, rows(head)][:, :VOCABULARY] += torch.eye(VOCABULARY)


def build_induction(model: LlamaForCausalLM) -> None:
    """The token is looked for among those before, in the dimensions that positions hardly turn."""
    attention = model.model.layers[1].self_attn
    group, slow = 0, [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    code = torch.zeros(HEAD_DIM, VOCABULARY)
    for token in range(VOCABULARY):
        code[slow[token % len(slow)] + (HEAD_DIM // 2) * (token // len(slow)), token] = 1
    for _, head in (INDUCTION, BYSTANDER):
        attention.q_proj.weight[rows(head), TOKEN] += 12 * code
    attention.k_proj.weight[rows(group), BEFORE] += code
    attention.v_proj.weight[rows(group)][:VOCABULARY, TOKEN] += torch.eye(VOCABULARY)
    attention.o_proj.weight[NEXT, rows(INDUCTION[1])][:, :VOCABULARY] += torch.eye(VOCABULARY)
    attention.o_proj.weight[:, rows(BYSTANDER[1])] = 0


def rows(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


def pair() -> Pair:
    before, after = [1, 2, 3, 4], [5, 6, 7, 1]
    clean, other = [9, 10, 11], [9, 12, 13]
    ids = [*before, *clean, *after, *clean]
    return Pair(tuple(ids), (*before, *other, *after, *clean), (12, 13), (12, 13))


@pytest.fixture(scope="module")
def body() -> Body:
    return Body(circuit(), SHAPE)


@pytest.mark.parametrize("method", ["exact", "attribution"])
def test_the_circuit_is_found(body: Body, method: str):
    bench = Bench(body, decay=0.9, require_correct=True, least_drop=1.0)
    effects: Effects = Patching(body, 1000) if method == "exact" else Attribution(body)
    inquiry = Inquiry(bench, {method: Survey(effects, threshold=0.05)}, lambda: None)
    inquiry.first_round("induction", iter([pair()]), 1, 1)
    assert inquiry.used, "the circuit gives the right answer"
    inquiry.next_round()
    survey = inquiry.surveys[method]
    received, sent = (effect[0] for effect in survey.effects)
    assert survey.path[0].nonzero().tolist() == [list(INDUCTION)], "only the induction head writes the answer"
    if method == "exact":
        assert received[INDUCTION] == pytest.approx(1, abs=0.05)
        assert sent[PREVIOUS] > 0.2, "without the token before, the second answer is not found"
        scores = capability_score(survey.effects, 0.05)
        best = scores.flatten().argsort(descending=True)[:2].tolist()
        assert best == [INDUCTION[0] * 4 + INDUCTION[1], PREVIOUS[0] * 4 + PREVIOUS[1]]
    else:
        assert received[INDUCTION] > 0.2
        assert sent[PREVIOUS] < 0.05, "a softmax that is sure of itself has no slope: what attribution cannot see"
    assert received[BYSTANDER] == 0
    assert sent[BYSTANDER] == 0


def test_the_bystander_looks_where_the_induction_head_looks(body: Body):
    ids = torch.tensor([pair().ids[:-1]])
    body.model.set_attn_implementation("eager")
    attention_HTT = body.model(ids, output_attentions=True).attentions[1][0]
    body.model.set_attn_implementation("sdpa")
    assert attention_HTT[BYSTANDER[1], -1, 6] > 0.9
    torch.testing.assert_close(attention_HTT[BYSTANDER[1]], attention_HTT[INDUCTION[1]], atol=0.02, rtol=0)
