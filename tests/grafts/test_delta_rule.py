from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from grafts.hybrid import delta_rule
from grafts.hybrid.delta_rule import chunked, gated_delta_rule, naive, recurrent
from grafts.hybrid.heads import unit_length

EXACT = {"rtol": 0, "atol": 1e-12}


def inputs(num_tokens: int, *, rows: int = 2, heads: int = 3, keys: int = 4, values: int = 5, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, num_tokens, heads)
    q, k, v = (torch.randn(*shape, n, generator=generator, dtype=torch.float64) for n in (keys, keys, values))
    g, beta = (torch.rand(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return [unit_length(q), unit_length(k), v, -2 * g, 2 * beta]


def start(seed: int = 9) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 40), st.sampled_from([1, 4, 16, 64]), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_every_form_computes_the_definition(num_tokens: int, chunk_size: int, carried: bool, seed: int):
    given_inputs, state = inputs(num_tokens, seed=seed), start(seed) if carried else None
    expected = naive(*given_inputs, state)
    for found in (recurrent(*given_inputs, state), chunked(*given_inputs, state, chunk_size=chunk_size)):
        torch.testing.assert_close(found.output, expected.output, **EXACT)
        torch.testing.assert_close(found.state, expected.state, **EXACT)


def test_half_precision_inputs_are_widened_before_anything_is_computed():
    q, k, v, g, beta = inputs(20)
    half = [x.bfloat16() for x in (q, k)] + [v.float(), g.bfloat16(), beta.bfloat16()]
    expected = naive(*half)
    for found in (recurrent(*half), chunked(*half)):
        torch.testing.assert_close(found.output, expected.output, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.state, expected.state, rtol=0, atol=1e-5)


@given(st.integers(0, 30), st.integers(0, 30))
@settings(deadline=None, max_examples=20)
def test_a_split_sequence_goes_on_where_it_stopped(first: int, second: int):
    whole, parts = inputs(first + second), [x[:, :first] for x in inputs(first + second)]
    rest = [x[:, first:] for x in whole]
    before = chunked(*parts, start(), chunk_size=8)
    after = chunked(*rest, before.state, chunk_size=8)
    expected = chunked(*whole, start(), chunk_size=8)
    torch.testing.assert_close(torch.cat([before.output, after.output], 1), expected.output, **EXACT)
    torch.testing.assert_close(after.state, expected.state, **EXACT)


def test_gradients_are_those_of_the_definition():
    def gradients(form) -> list[Tensor]:
        leaves = [x.requires_grad_() for x in [*inputs(19), start()]]
        read = form(*leaves)
        return list(torch.autograd.grad(read.output.square().sum() + read.state.sum(), leaves))

    for found, expected in zip(gradients(lambda *x: chunked(*x, chunk_size=8)), gradients(naive), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_strong_forgetting_overflows_neither_forward_nor_backward():
    q, k, v, _, beta = (x.float() for x in inputs(64))
    g = torch.full(q.shape[:3], -50.0, requires_grad=True)
    output = chunked(q, k, v, g, beta).output
    output.sum().backward()
    assert output.isfinite().all()
    assert g.grad is not None
    assert g.grad.isfinite().all()


def test_nothing_is_written_without_strength():
    q, k, v, g, beta = inputs(10)
    read = chunked(q, k, v, g, beta * 0, start())
    torch.testing.assert_close(read.state, start() * g.sum(1).exp()[..., None, None], **EXACT)
    assert chunked(q, k, v, g, beta * 0).output.abs().max() == 0


def test_what_was_just_written_is_read_back():
    _, k, v, g, beta = inputs(10)
    k = k / k.norm(dim=-1, keepdim=True)
    read = chunked(k * k.shape[-1] ** 0.5, k, v, g * 0, torch.ones_like(beta), start())
    torch.testing.assert_close(read.output, v, **EXACT)


def test_weak_writing_is_linear_attention():
    q, k, v, g, beta = inputs(30)
    strength = 1e-6
    found = chunked(q, k, v, g * 0, torch.full_like(beta, strength)).output / strength
    scores = torch.einsum("bihd,bjhd->bhij", q, k).tril() / q.shape[-1] ** 0.5
    torch.testing.assert_close(found, torch.einsum("bhij,bjhd->bihd", scores, v), rtol=1e-3, atol=1e-5)


def test_the_output_is_that_of_the_rule_in_transformers():
    q, k, v, g, beta = (x.float() for x in inputs(100, values=4))
    theirs, state = torch_chunk_gated_delta_rule(q, k, v, g, beta, output_final_state=True)
    ours = gated_delta_rule(q, k, v, g, beta)
    torch.testing.assert_close(ours.output, theirs)
    torch.testing.assert_close(ours.state, state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num_tokens", [1, 7])
def test_states_are_wide_and_outputs_as_given(dtype: torch.dtype, num_tokens: int):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = gated_delta_rule(*(x.to(dtype) for x in inputs(num_tokens)))
    assert read.state.dtype == torch.float32
    assert read.output.dtype == dtype
    exact = naive(*(x.to(dtype).double() for x in inputs(num_tokens))).state
    torch.testing.assert_close(read.state.double(), exact, rtol=0, atol=1e-6)


def test_fla_is_not_asked_for_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    def imported() -> None:
        raise AssertionError("fla was looked for")

    monkeypatch.setattr(delta_rule, "_fla", imported)
    assert gated_delta_rule(*(x.bfloat16() for x in inputs(3))).output.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_tokens", [1, 100])
def test_a_gpu_computes_the_definition(num_tokens: int):
    given_inputs = [x.bfloat16() for x in inputs(num_tokens, keys=64, values=64)]
    start_state = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = naive(*(x.double() for x in given_inputs), start_state.double())
    found = gated_delta_rule(*(x.cuda() for x in given_inputs), start_state.cuda())
    torch.testing.assert_close(found.output.cpu().double(), expected.output, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found.state.cpu().double(), expected.state, rtol=2e-2, atol=2e-2)
