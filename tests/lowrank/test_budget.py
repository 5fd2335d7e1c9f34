"""Equal bytes: ranks that keep to a budget, and the next larger ones, which do not; the bytes of codes."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from grafts.lowrank.budget import Grid, Shape, codes_bytes, correction_bytes, rank_of_bytes
from grafts.packing import packed_bytes
from grafts.rtn import Bits

SHAPES = st.lists(
    st.builds(Shape, st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple), st.integers(1, 40)),
    min_size=1,
    max_size=5,
)


@given(SHAPES, st.integers(0, 60_000), st.booleans(), st.sampled_from([2, 4]))
@settings(deadline=None, max_examples=100)
def test_the_rank_is_the_largest_that_fits(shapes: list[Shape], num_bytes: int, shared: bool, value_bytes: int):
    rank = rank_of_bytes(shapes, num_bytes, shared=shared, value_bytes=value_bytes)
    used, more = (correction_bytes(shapes, each, shared=shared, value_bytes=value_bytes) for each in (rank, rank + 1))
    assert used <= num_bytes
    assert more > num_bytes or more == used, "or no group can have more"


def test_bytes_are_those_of_the_factors():
    shape = Shape((6, 4), 8)
    assert correction_bytes([shape], 3, shared=True, value_bytes=2) == 2 * 3 * (6 + 4 + 8)
    assert correction_bytes([shape], 3, shared=False, value_bytes=4) == 4 * 3 * ((6 + 8) + (4 + 8))
    assert correction_bytes([shape], 99, shared=True) == 2 * 8 * 18, "its rank is at most 8"
    assert correction_bytes([shape], 99, shared=False) == 2 * (6 * 14 + 4 * 12)


@given(SHAPES, st.integers(1, 4))
@example([Shape((1, 1), 2)], 1)
@settings(deadline=None, max_examples=50)
def test_at_the_bytes_of_separate_factors_a_shared_one_has_no_lower_rank(shapes: list[Shape], rank: int):
    rank = min(rank, *(min(shape.inputs, *shape.outputs) for shape in shapes))  # one that every linear can have
    assert rank_of_bytes(shapes, correction_bytes(shapes, rank, shared=False), shared=True) >= rank
    wide = Shape((64, 64, 64), 128)
    assert rank_of_bytes([wide], correction_bytes([wide], 8, shared=False), shared=True) == 14


@given(SHAPES, st.sampled_from([2, 3, 4, 8]), st.sampled_from([8, 16]), st.booleans())
@settings(deadline=None, max_examples=50)
def test_codes_take_what_each_linear_s_do(shapes: list[Shape], bits: Bits, group_size: int, symmetric: bool):
    sizes = [(rows, shape.inputs) for shape in shapes for rows in shape.outputs]
    expected = sum(packed_bytes(*size, bits, group_size, symmetric=symmetric) for size in sizes)
    assert codes_bytes(shapes, Grid(bits, group_size), symmetric=symmetric) == expected
