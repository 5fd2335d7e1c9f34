"""Low-rank corrections of what a base quantiser gives, group by group: the policy around `grafts.lowrank`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from grafts.lowrank.budget import Shape
from grafts.lowrank.comparators import METHODS
from grafts.lowrank.comparators import Method as Comparator
from grafts.lowrank.covariance import Roots, roots, shrink, shrunk_change, triangular_roots
from grafts.lowrank.glowq import Correction, refit, solve
from grafts.lowrank.selection import SCORES, Score, Unit, energy_capture, relative_gain
from grafts.rtn import dequantise
from stages.errors import UserError
from stages.quantize.calibrate import Method, Solved
from stages.quantize.flow import input_groups
from stages.quantize.glowq import Solver
from stages.quantize.layers import Group, Layer
from stages.quantize.targets import Targets

DIAGONAL: Final[Mapping[Solver, Comparator]] = {
    "qera_approx": "qera_approx",
    "l2qer": "lqer",
    "zeroquant_v2": "zeroquant",
}
"""Solvers that weigh each input by itself."""
SEPARATE: Final = frozenset[Solver](("qera_exact", *DIAGONAL))
"""Solvers that give every linear a right factor of its own."""


@dataclass(frozen=True)
class Settings:
    """How corrections are found and stored."""

    solver: Solver
    rank: int
    shrinkage: float
    randomised: bool
    score: Score
    seed: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Restored:
    """The correction of one group, in the type that is stored, and what it is worth on the calibration tokens."""

    members: tuple[str, ...]
    left: tuple[Tensor, ...]
    """A_i [O_i, R]"""
    right: Tensor
    """B [R, I]"""
    captured: float
    """Share of the squared output error that it takes away, by the solver's own measure of the inputs."""
    gain: float
    """What it takes away, over the squared output itself."""
    score: float
    """By which groups are ranked."""

    @property
    def rank(self) -> int:
        """R."""
        return len(self.right)

    @property
    def num_bytes(self) -> int:
        """Of all factors, in the file."""
        return sum(factor.numel() * factor.itemsize for factor in (*self.left, self.right))


@dataclass
class Corrected(Method):
    """The codes of `base`, and a correction of every group of linears that read one input."""

    base: Method
    settings: Settings
    restored: list[Restored] = field(default_factory=list)

    @property
    def rounds(self) -> bool:
        """Whether the base rounds to nearest."""
        return self.base.rounds

    def details(self) -> Mapping[str, Any]:
        """What the base tells."""
        return self.base.details()

    def solve(self, layer: Layer) -> dict[str, Solved]:
        """Codes with corrections for every chosen linear."""
        solved = dict(self.base.solve(layer))
        for group in layer.groups if self.settings.rank else ():
            for members in self._groups(group):
                self._correct(group, members, solved)
        return solved

    def _groups(self, group: Group) -> list[tuple[str, ...]]:
        return [group.chosen] if self.settings.solver not in SEPARATE else [(name,) for name in group.chosen]

    def _correct(self, group: Group, members: tuple[str, ...], solved: dict[str, Solved]) -> None:
        parts = [solved[name] for name in members]
        errors = [part.weight.double() - dequantise(part.quantised).double() for part in parts]
        weighting = self._roots(group, parts[0].covariance)
        found = solve(
            errors, weighting, self.settings.rank, seed=self.settings.seed, randomised=self.settings.randomised
        )
        if self.settings.solver == "glowq_refit":
            found = refit(errors, weighting, found)
        stored = _stored(found, self.settings.dtype, members)
        weight_OI = torch.cat([part.weight for part in parts])
        power = self._power(weight_OI, sum(part.power for part in parts), parts[0].covariance, weighting)
        unit = Unit(weight_OI, torch.cat(errors), found, len(self.restored), power)
        self.restored.append(_restored(members, stored, unit, self.settings.score))
        for name, part, left_OR in zip(members, parts, stored.left, strict=True):
            solved[name] = part._replace(correction=left_OR.float() @ stored.right.float())

    def _power(self, weight_OI: Tensor, seen: float, covariance_II: Tensor, weighting: Roots) -> float:
        """||W S||^2, S being the roots that the solver weighs errors with, given its square by the inputs as `seen`."""
        if weighting.is_diagonal:
            return weighting.power(weight_OI)
        mean_variance = covariance_II.diagonal().mean().item()
        return shrunk_change(seen, weight_OI, mean_variance, self.settings.shrinkage)

    def _roots(self, group: Group, covariance_II: Tensor) -> Roots:
        """Roots of the second moment of what the weights read, which a base may have scaled."""
        shrunk_II = shrink(covariance_II, self.settings.shrinkage)
        if self.settings.solver not in DIAGONAL:
            try:
                return triangular_roots(shrunk_II)
            except ValueError:  # not definite, as without shrinkage: eigenvalues have a floor
                return roots(shrunk_II)
        before_I, after_I = group.covariance.diagonal(), covariance_II.diagonal()
        scale_I = torch.where(before_I > 0, after_I / before_I, 1.0).sqrt()
        return METHODS[DIAGONAL[self.settings.solver]](covariance_II, group.magnitude * scale_I)


def group_shapes(model: torch.nn.Module, window_T: Tensor, chosen: Targets) -> list[Shape]:
    """The sizes of the groups of `chosen` linears that read one input, found on a window of tokens."""
    everything = {**chosen.layers}
    groups = input_groups(everything, lambda: model(input_ids=window_T[None].to(model.device), use_cache=False))
    return [
        Shape(tuple(everything[name].out_features for name in group), everything[group[0]].in_features)
        for group in groups
    ]


def _stored(found: Correction, dtype: torch.dtype, members: tuple[str, ...]) -> Correction:
    try:
        return found.stored(dtype)
    except ValueError as error:
        raise UserError(
            str(error), where=", ".join(members), fix="raise shrinkage, or store the model as bfloat16"
        ) from None


def _restored(members: tuple[str, ...], stored: Correction, unit: Unit, score: Score) -> Restored:
    return Restored(
        members,
        stored.left,
        stored.right,
        captured=energy_capture(unit),
        gain=relative_gain(unit),
        score=SCORES[score](unit),
    )
