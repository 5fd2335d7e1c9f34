from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grafts.hybrid.heads import (
    first_tokens,
    groups_of,
    join,
    length_scale,
    normalise,
    real_tokens,
    rows_of,
    window_mask,
)


@given(st.permutations(range(6)), st.integers(0, 6))
@settings(deadline=None)
def test_every_head_goes_back_to_its_place(order: list[int], cut: int):
    whole = torch.randn(2, 3, 6, 4)
    branches = [(order[:cut], whole[:, :, order[:cut]]), (order[cut:], whole[:, :, order[cut:]])]
    assert torch.equal(join(branches), whole)
    assert torch.equal(join(branches[::-1]), whole)


def test_a_head_that_is_missing_or_twice_is_refused():
    one = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="expected each of 0 to 3 once"):
        join([((0, 1), one), ((1, 2), one)])


def test_groups_and_rows():
    assert groups_of((0, 5, 4), 2) == (0, 2)
    weight = torch.arange(12.0).reshape(6, 2)
    assert rows_of(weight, [2, 0], 2).tolist() == [*weight[4:6].tolist(), *weight[:2].tolist()]


def test_fusion_gives_each_head_its_gain_as_root_mean_square():
    outputs = torch.randn(2, 5, 3, 16) * torch.tensor([1e-2, 1.0, 1e2])[:, None]
    gain = torch.tensor([0.5, 1.0, 3.0])
    rms = normalise(outputs, gain, 1e-12).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, gain.expand_as(rms))


def test_fusion_discards_the_scale_of_a_token():
    # Why all-softmax layers cannot equal the teacher with the fusion on: a head's scale varies over tokens.
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(1, 4000, 1, 1, generator=generator).mul(0.3).exp()
    outputs = torch.randn(1, 4000, 1, 64, generator=generator) * scale
    best = normalise(outputs, outputs.square().mean((0, 1, 3)).sqrt(), 1e-12)
    error = (best - outputs).norm() / outputs.norm()
    assert 0.2 < error < 0.4


def test_the_length_scale_is_one_at_the_start_and_grows_slowly():
    positions = torch.tensor([[0, 1, 361, 131072 - 362]])
    found = length_scale(positions, 362.0)
    assert found[0, 0] == 1
    assert found[0, 3].item() == pytest.approx(math.log(131072) / math.log(362))
    assert (found.diff() > 0).all()


def causal(num_queries: int, num_keys: int) -> torch.Tensor:
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)[None, None]


@pytest.mark.parametrize("kind", ["boolean", "additive", "flash"])
def test_padding_is_read_off_any_mask(kind: str):
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    mask = causal(4, 4) & real[:, None, None, :]
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = real_tokens(real.long() if kind == "flash" else mask, 4)
    assert torch.equal(found, real)
    assert real_tokens(None, 4) is None


def test_padding_of_a_continued_sequence_is_that_of_the_new_tokens():
    real = torch.tensor([[0, 1, 1, 1, 1]]).bool()
    mask = (causal(5, 5) & real[:, None, None, :])[:, :, 3:]
    assert real_tokens(mask, 2).tolist() == [[True, True]]


def test_packed_sequences_are_refused():
    mask = causal(4, 4).clone()
    mask[..., 2:, :2] = False
    with pytest.raises(ValueError, match="packed sequences"):
        real_tokens(mask, 4)


def test_block_masks_are_refused():
    with pytest.raises(ValueError, match="do not take the object of flex_attention"):
        real_tokens(object(), 4)  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(0, 6), st.integers(2, 5))
@settings(deadline=None)
def test_a_window_hides_what_is_further_back(num_queries: int, num_past: int, window: int):
    num_keys = num_queries + num_past
    distance = torch.arange(num_past, num_keys)[:, None] - torch.arange(num_keys)
    expected, keys = ((distance >= 0) & (distance < window))[None, None], torch.arange(num_keys)
    assert torch.equal(window_mask(causal(num_queries, num_keys + 3), num_queries, keys, window), expected)
    found = window_mask(None, num_queries, keys, window)
    assert torch.equal(expected if found is None else found, expected)
    additive = window_mask(torch.zeros(1, 1, num_queries, num_keys), num_queries, keys, window)
    assert torch.equal(additive == 0, expected)


def test_the_first_tokens_of_each_row_stay_in_sight():
    columns = torch.tensor([0, 1, 2, 3, 6, 7, 8])
    padded = causal(2, 9).clone().expand(2, 1, 2, 9).clone()
    padded[1, ..., :2] = False
    assert first_tokens(padded).tolist() == [[0, 0], [2, 2]]
    seen = window_mask(padded, 2, columns, 2, 2, first_tokens(padded))[:, 0]
    assert seen[0].int().tolist() == [[1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1, 1]]
    assert seen[1].int().tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1, 1]]


def test_texts_packed_into_a_row_begin_at_columns_of_their_own():
    mask = causal(6, 6).clone()
    mask[..., :1] = False
    mask[..., 4:, :4] = False
    assert first_tokens(mask).tolist() == [[6, 1, 1, 1, 4, 4]]
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert first_tokens(additive).tolist() == [[6, 1, 1, 1, 4, 4]]
