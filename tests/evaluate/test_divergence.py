"""The pure functions against torch.distributions, and the whole comparison against a naive one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

from stages.evaluate import divergence
from stages.evaluate.distance import compare
from stages.evaluate.divergence import naive_token_distance, token_distance
from stages.evaluate.memory import PeakTensorBytes
from tests.evaluate.families import tiny

LARGE = 262_144


def logits(num_positions: int, vocab_size: int, scale: float, seed: int) -> Tensor:
    return torch.randn(num_positions, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


@given(
    vocab_size=st.integers(2, 200),
    block=st.integers(1, 64),
    scale=st.floats(0.0, 30.0),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_kl_is_that_of_torch_distributions_for_any_block(vocab_size, block, scale, seed, dtype):
    parent, child = (logits(5, vocab_size, scale, seed + number).to(dtype) for number in (0, 1))
    targets = torch.randint(vocab_size, (5,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "VOCABULARY_BLOCK", block)
        found = token_distance(parent, child, targets)
    pair = [Categorical(logits=side.double()) for side in (parent, child)]
    torch.testing.assert_close(found.kl.double(), kl_divergence(*pair), rtol=1e-4, atol=2e-5)
    for nll, side in ((found.parent_nll, pair[0]), (found.child_nll, pair[1])):
        torch.testing.assert_close(nll.double(), -side.log_prob(targets), rtol=1e-5, atol=2e-5)
    assert torch.equal(found.agree, (parent.argmax(-1) == child.argmax(-1)).float())


def test_equal_logits_are_at_distance_zero_to_the_bit():
    parent = logits(7, 70_000, 8.0, 0)
    found = token_distance(parent, parent.clone(), torch.zeros(7, dtype=torch.long))
    assert found.kl.abs().max() == 0
    assert found.agree.min() == 1


def test_tokens_that_are_ruled_out():
    """Ruled out by both or by the parent: no matter. By the child alone, where the parent may say it: infinite."""
    parent, child = logits(2, 50, 1.0, 0), logits(2, 50, 1.0, 1)
    parent[0, 3] = child[0, 3] = parent[0, 4] = child[1, 5] = -torch.inf
    found = token_distance(parent, child, torch.zeros(2, dtype=torch.long)).kl
    expected = kl_divergence(Categorical(logits=parent.double()), Categorical(logits=child.double()))
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert found[1].item() == torch.inf


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere", "qwen3_next"])
def test_the_comparison_of_two_models_is_the_naive_one(family: str):
    parent, child = tiny(family), tiny(family, seed=1)
    windows = torch.randint(1, 96, (5, 17), generator=torch.Generator().manual_seed(0))
    found = compare(parent, child, windows, batch_size=2, layers=True)
    with torch.no_grad():
        outputs = [model(windows[:, :-1], use_cache=False, output_hidden_states=True) for model in (parent, child)]
    expected = naive_token_distance(*(o.logits.flatten(0, 1) for o in outputs), windows[:, 1:].flatten())
    assert found.distance.kl == pytest.approx(expected.kl.mean().item(), rel=1e-3, abs=1e-6)
    assert found.distance.top1_agreement == pytest.approx(expected.agree.mean().item())
    assert found.distance.child_perplexity == pytest.approx(expected.child_nll.mean().exp().item(), rel=1e-5)
    pairs = zip(outputs[0].hidden_states, outputs[1].hidden_states, strict=True)
    cosines = [functional.cosine_similarity(*pair, dim=-1).mean().item() for pair in pairs]
    assert found.layer_cosine == pytest.approx(cosines, rel=1e-4, abs=1e-6)


def test_models_of_other_depth_or_width_have_no_layer_comparison():
    parent, windows = tiny("llama"), torch.arange(18).view(2, 9)
    assert parent.get_input_embeddings().weight[0].abs().max() == 0  # the padding token's: both zero is equal too
    for change in ({"num_hidden_layers": 1}, {"hidden_size": 16}):
        assert compare(parent, tiny("llama", **change), windows, layers=True).layer_cosine == ()
    assert compare(parent, parent, windows, layers=True).layer_cosine == (1.0, 1.0, 1.0)
    assert compare(parent, parent, windows).layer_cosine == ()


def test_two_large_vocabularies_are_compared_in_half_of_what_one_batch_of_logits_takes():
    """2 x 128 positions of 262144 tokens: 268 MB of float32 logits a model; the naive way holds three such matrices."""
    sizes = {"vocab_size": LARGE, "hidden_size": 8, "tie_word_embeddings": True}
    parent, child = (tiny("gemma2", seed=seed, **sizes).to(torch.bfloat16) for seed in (0, 1))
    windows = torch.randint(LARGE, (2, 129), generator=torch.Generator().manual_seed(0))
    with PeakTensorBytes() as streamed:
        found = compare(parent, child, windows, batch_size=2)
    with PeakTensorBytes() as whole, torch.no_grad():
        both = [model(windows[:, :-1], use_cache=False).logits.flatten(0, 1) for model in (parent, child)]
        naive = naive_token_distance(*both, windows[:, 1:].flatten())
    batch_bytes = 2 * 128 * LARGE * 4
    assert found.distance.kl == pytest.approx(naive.kl.mean().item(), rel=1e-2, abs=1e-4)
    assert streamed.peak < 0.55 * batch_bytes
    assert whole.peak > 3 * batch_bytes
