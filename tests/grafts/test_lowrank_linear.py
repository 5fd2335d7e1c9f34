"""One quantised linear, of any shape, bits and groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from grafts import apply
from grafts.packing import pack, pack_crossing, unpack, unpack_crossing
from grafts.quantised.graft import QuantisedLinears
from grafts.quantised.linear import QuantisedLinear
from grafts.rtn import code_range, dequantise, quantise
from tests.grafts.families import tiny

BITS = st.sampled_from([2, 3, 4, 8])


def linear_of(outputs: int, inputs: int, seed: int, *, bias: bool, constant: bool) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).bfloat16()
    if constant:
        linear.weight.data[:] = linear.weight.data[:1, :1]
    return linear


@given(BITS, st.integers(1, 9), st.integers(1, 70), st.integers(1, 40), st.booleans(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_it_computes_with_what_its_codes_stand_for(
    bits: int, outputs: int, inputs: int, group_size: int, symmetric: bool, bias: bool, constant: bool
):
    linear = linear_of(outputs, inputs, bits, bias=bias, constant=constant)
    codes = quantise(linear.weight.data, bits, group_size, symmetric=symmetric)
    found = QuantisedLinear(linear, bits, group_size, symmetric=symmetric)
    found.fill(codes)
    assert torch.equal(found.weight, dequantise(codes))
    x = torch.randn(2, 3, inputs).bfloat16()
    assert torch.equal(found(x), functional.linear(x, dequantise(codes), linear.bias))
    again = QuantisedLinear(linear, bits, group_size, symmetric=symmetric)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(x), found(x))


@given(st.sampled_from([2, 4, 8]), st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_packing_without_crossing_is_packing(bits: int, rows: int, columns: int, seed: int):
    low, high = code_range(bits)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator, dtype=torch.int8)
    words = pack(codes, bits)
    assert torch.equal(pack_crossing(codes, bits), words)
    assert torch.equal(unpack(words, bits, columns), codes)
    assert torch.equal(unpack_crossing(words, bits, columns), codes)


def test_gradients_reach_the_input_and_the_bias():
    linear = linear_of(4, 8, 0, bias=True, constant=False).float()
    found = QuantisedLinear(linear, 4, 4, symmetric=True)
    found.fill(quantise(linear.weight.data, 4, 4))
    x = torch.randn(3, 8, requires_grad=True)
    found(x).sum().backward()
    assert torch.equal(x.grad, found.weight.sum(0).expand(3, 8))
    assert torch.equal(linear.bias.grad, torch.full((4,), 3.0))
    assert {name for name, _ in found.named_parameters()} == {"bias"}


class Fused(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp, self.experts = mlp, nn.Parameter(torch.zeros(2, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


@pytest.mark.parametrize("skip", [("lm_head",), ("lm_head", "*.experts")])
def test_fused_experts_are_refused_unless_they_are_to_stay(skip: tuple[str, ...]):
    model = tiny()
    model.model.layers[0].mlp = Fused(model.model.layers[0].mlp)
    graft = QuantisedLinears(bits=4, group_size=16, symmetric=True, skip=skip)
    if len(skip) == 2:
        assert apply(model, [graft]).model.layers[0].mlp.experts.shape == (2, 4, 4)
        return
    with pytest.raises(ValueError, match=r"mlp\.experts of shape \(2, 4, 4\) \(Fused\) is no linear's weight"):
        apply(model, [graft])
