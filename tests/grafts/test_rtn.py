from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.packing import pack, packed_bytes, packed_tensors, unpack
from grafts.rtn import code_range, dequantise, naive_quantise, quantise

BITS = st.sampled_from([2, 3, 4, 8])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@st.composite
def weights(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """A weight of any scale, sometimes with zeros or one sign only, and a group size that rarely divides its width."""
    rows, columns, size = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.sampled_from([1, 5, 8, 16, 64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    weight = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-9, 3))
    weight = draw(st.sampled_from([weight, weight.abs(), -weight.abs(), weight * (weight > 0), weight * 0]))
    return weight.to(draw(DTYPES)), size


@given(weights(), BITS, st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_fast_path_equals_the_naive_one(case: tuple[torch.Tensor, int], bits: int, symmetric: bool):
    weight, size = case
    fast, naive = (find(weight, bits, size, symmetric=symmetric) for find in (quantise, naive_quantise))
    assert torch.equal(fast.codes, naive.codes)
    assert torch.equal(fast.scale, naive.scale)
    assert symmetric == (fast.zero_point is None)
    if fast.zero_point is not None and naive.zero_point is not None:
        assert torch.equal(fast.zero_point, naive.zero_point)


@given(weights(), BITS, st.booleans())
@settings(deadline=None, max_examples=100)
def test_no_weight_moves_further_than_promised(case: tuple[torch.Tensor, int], bits: int, symmetric: bool):
    weight, size = case
    found = quantise(weight, bits, size, symmetric=symmetric)
    scale = found.scale.float().repeat_interleave(size, dim=1)[:, : weight.shape[1]]
    steps = 2**bits * torch.finfo(weight.dtype).eps  # the scale is rounded once, the product once
    moved = (dequantise(found).float() - weight.float()).abs()
    assert (moved <= scale * ((0.5 if symmetric else 1.0) + 2 * steps)).all()
    assert torch.isfinite(dequantise(found)).all()


@given(weights(), BITS)
@settings(deadline=None, max_examples=30)
def test_weights_on_the_grid_stay_where_they_are(case: tuple[torch.Tensor, int], bits: int):
    """Where they and 0 span the grid: one whose ends both lie halfway between steps may lose a step."""
    weight, size = case
    found = quantise(weight.float(), bits, size, symmetric=False)
    once = dequantise(found)
    twice = dequantise(quantise(once, bits, size, symmetric=False))
    groups = zip(once.split(size, 1), twice.split(size, 1), found.scale.split(1, 1), strict=True)
    for before, after, scale in groups:
        steps = (before / scale).round()
        spans = steps.amax(1).clamp(min=0) - steps.amin(1).clamp(max=0) == 2**bits - 1
        torch.testing.assert_close(before[spans], after[spans], rtol=1e-4, atol=0)


@given(st.integers(1, 5), st.integers(1, 70), BITS, st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_packing_is_the_layout_of_compressed_tensors_and_reverses(rows: int, columns: int, bits: int, seed: int):
    low, high = code_range(bits)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, (rows, columns), dtype=torch.int8, generator=generator)
    words = pack(codes, bits)
    assert torch.equal(words, pack_to_int32(codes, bits))
    assert torch.equal(unpack(words, bits, columns), codes)
    assert torch.equal(unpack_from_int32(words, bits, codes.shape), codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_and_values_are_those_of_compressed_tensors(bits: int, symmetric: bool):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=16)
    groups = weight.unflatten(-1, (4, 16))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    ours = quantise(weight, bits, 16, symmetric=symmetric)
    torch.testing.assert_close(ours.scale, scale)
    if ours.zero_point is not None:
        assert torch.equal(ours.zero_point.int(), zero.int())
    theirs = dequantize(ours.codes, ours.scale, ours.zero_point, args)
    assert torch.equal(dequantise(ours), theirs)


def test_more_bits_move_weights_less():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    moved = {bits: (dequantise(quantise(weight, bits, 32)) - weight).norm().item() for bits in (4, 8)}
    assert moved[8] < moved[4] / 12


@given(weights(), BITS, st.booleans())
@settings(deadline=None, max_examples=40)
def test_bytes_are_those_of_the_tensors(case: tuple[torch.Tensor, int], bits: int, symmetric: bool):
    weight, size = case
    tensors = packed_tensors(quantise(weight, bits, size, symmetric=symmetric), bits)
    held = sum(tensor.nbytes for name, tensor in tensors.items() if name != "weight_shape")
    counted = packed_bytes(*weight.shape, bits, size, symmetric=symmetric, scale_bytes=weight.element_size())
    assert held == counted
