"""Which grafts may follow which: the composition rules of a model, in one place.

A model is grafted from the inside out: the attention first, then the feed-forward parts, then depth (layers that share
parameters), then the storage of the linears, then adapters beside them. Each place is taken once, adapters excepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from transformers import PretrainedConfig

from grafts.graft import Graft, Place

ORDER: Final[tuple[Place, ...]] = ("attention", "feed_forward", "depth", "linears", "adapters")
REPEATABLE: Final[frozenset[Place]] = frozenset({"adapters"})
TOO_LATE: Final[dict[Place, str]] = {
    "feed_forward": "its experts would not see the attention they were made beside",
    "depth": "layers that share parameters cannot be changed one by one",
    "linears": "the quantised linears hold no weights to reuse: quantise last",
    "adapters": "an adapter is fitted to the linears beside it: merge or drop it first",
}
"""Why nothing of an earlier place can follow a graft of this one."""


def check_grafts(base: PretrainedConfig, grafts: Sequence[Graft]) -> None:
    """Raise ValueError, with the reason, unless `grafts` can be put on `base` in this order."""
    for earlier, later in pairwise(grafts):
        _check_pair(earlier, later)
    for index, graft in enumerate(grafts):
        graft.check(base, grafts[:index])


def _check_pair(earlier: Graft, later: Graft) -> None:
    if earlier.place == later.place and later.place not in REPEATABLE:
        raise ValueError(
            f"'{later.name}' cannot follow '{earlier.name}': the model's {later.place} is already grafted; "
            "start again from the model before that conversion"
        )
    if ORDER.index(later.place) < ORDER.index(earlier.place):
        raise ValueError(f"'{later.name}' cannot follow '{earlier.name}': {TOO_LATE[earlier.place]}")
