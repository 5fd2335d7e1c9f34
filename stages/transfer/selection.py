"""Which heads stay full attention: pure functions on scores (arXiv 2606.20097, section 4.2).

A unit is what is kept or converted as one: a query head, or the query heads that share a key-value head. Units are
numbered by layer, then by place. Higher scores come first, ties by (layer, place). The paper names the strategies;
`fixed`, the tie rule and the order of reserving and filling in `global_best` are this project's reading.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

Map = Sequence[Sequence[float]]
"""Scores of the units of each layer [L][U]."""
Choice = list[list[int]]
"""The chosen units of each layer, ascending."""


def fixed(num_layers: int, count: int) -> Choice:
    """The first units of every layer, `count` in all."""
    return [list(range(quota)) for quota in quotas(num_layers, count)]


def layer_random(num_layers: int, num_units: int, count: int, rng: random.Random) -> Choice:
    """As many in every layer, drawn by `rng`."""
    return [sorted(rng.sample(range(num_units), quota)) for quota in quotas(num_layers, count)]


def global_random(num_layers: int, num_units: int, count: int, rng: random.Random) -> Choice:
    """`count` of all units, drawn by `rng`."""
    units = [(layer, unit) for layer in range(num_layers) for unit in range(num_units)]
    return _by_layer(num_layers, rng.sample(units, count))


def layer_best(scores: Map, count: int) -> Choice:
    """The best of each layer, as many in every layer."""
    chosen = zip(scores, quotas(len(scores), count), strict=True)
    return [sorted(_ranked([of_layer])[place][1] for place in range(quota)) for of_layer, quota in chosen]


def global_best(scores: Map, count: int, *, least: int = 0) -> Choice:
    """The best `count` of all units; the best `least` of each layer are reserved first."""
    ranked, reserved = _ranked(scores), [0] * len(scores)
    chosen = []
    for layer, unit in ranked:
        if reserved[layer] < least:
            chosen.append((layer, unit))
            reserved[layer] += 1
    rest = [place for place in ranked if place not in set(chosen)]
    return _by_layer(len(scores), [*chosen, *rest[: count - len(chosen)]])


def whole_layers(layer_scores: Sequence[float], num_units: int, num_kept: int) -> Choice:
    """All units of the best `num_kept` layers, none of the others."""
    kept = {layer for layer, _ in _ranked([[score] for score in layer_scores])[:num_kept]}
    return [list(range(num_units)) if layer in kept else [] for layer in range(len(layer_scores))]


def quotas(num_layers: int, count: int) -> list[int]:
    """`count` spread over layers: as many in each; where that does not divide, one more in some, evenly among them."""
    return [count * (layer + 1) // num_layers - count * layer // num_layers for layer in range(num_layers)]


def count_of(ratio: float, num_units: int) -> int:
    """`ratio` of `num_units`, rounded to the nearest, halves up."""
    return int(Fraction(str(ratio)) * num_units + Fraction(1, 2))


def heads_of(units: Choice, heads_per_unit: int) -> Choice:
    """The query heads that chosen `units` consist of."""
    return [
        [unit * heads_per_unit + place for unit in of_layer for place in range(heads_per_unit)] for of_layer in units
    ]


def groups_kept(heads: Choice, heads_per_group: int) -> int:
    """Key-value heads that at least one chosen query head reads, over all layers: what the cache has to hold."""
    return sum(len({head // heads_per_group for head in of_layer}) for of_layer in heads)


def _ranked(scores: Map) -> list[tuple[int, int]]:
    places = [(layer, unit) for layer, of_layer in enumerate(scores) for unit in range(len(of_layer))]
    return sorted(places, key=lambda place: (-scores[place[0]][place[1]], place))


def _by_layer(num_layers: int, places: Sequence[tuple[int, int]]) -> Choice:
    return [sorted(unit for layer, unit in places if layer == wanted) for wanted in range(num_layers)]
