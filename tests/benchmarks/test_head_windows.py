"""The masks that `benchmarks.hybrid recall` weighs heads with."""

import copy

import pytest
import torch

from benchmarks.hybrid.windows import HeadWindows, visible
from grafts import apply
from grafts.hybrid.graft import HybridHeads
from tests.grafts.families import tiny, tokens
from tests.grafts.hybrids import TEACHER, logits

KEPT = ((), (1,), (0, 2))


def windowed(kept, window: int, sinks: int):
    model = copy.deepcopy(tiny())
    heads = HeadWindows(model, window, sinks)
    heads.kept = dict(enumerate(kept))
    return model


@pytest.mark.parametrize(("window", "sinks"), [(21, 0), (1, 21)])
def test_seeing_everything_is_the_teacher(window: int, sinks: int):
    torch.testing.assert_close(logits(windowed(KEPT, window, sinks), tokens()), logits(tiny(), tokens()))


def test_keeping_all_heads_is_the_teacher():
    torch.testing.assert_close(logits(windowed((None,) * 3, 2, 0), tokens()), logits(tiny(), tokens()))


def test_without_sinks_it_is_the_graft_with_windows():

    student = apply(tiny(), [HybridHeads(full_heads=KEPT, others="sliding_window", window=6, **TEACHER)])
    found = logits(windowed(KEPT, 6, 0), tokens())
    torch.testing.assert_close(found, logits(student, tokens()), rtol=0, atol=1e-5)
    assert (found - logits(tiny(), tokens())).abs().max() > 1e-3


def test_sinks_are_the_first_tokens():
    _, near = visible(6, 2, 1)
    assert near[5].tolist() == [True, False, False, False, True, True]
    assert not near.triu(1).any()
