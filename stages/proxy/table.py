"""The tables that trained proxies make: recipes by seeds, everything else equal. Whatever their names and order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stages.artifacts import Report
from stages.errors import UserError
from stages.proxy.record import Trained, short_count


@dataclass(frozen=True)
class Table:
    """The proxies of one setting: R recipes by S seeds, one learning rate, one size, one budget."""

    runs: tuple[Trained, ...]
    recipes: tuple[str, ...]
    """Digests [R], sorted, so that no result depends on names or order."""

    @property
    def first(self) -> Trained:
        """Any of the runs: they differ in recipe and seed alone."""
        return self.runs[0]

    @cached_property
    def names(self) -> list[str]:
        """What people call the recipes [R]; the digest's beginning tells equal names apart."""
        names = {run.digest: run.recipe for run in self.runs}
        twice = {name for name in names.values() if list(names.values()).count(name) > 1}
        return [f"{names[d]} ({d[:8]})" if names[d] in twice else names[d] for d in self.recipes]

    @property
    def label(self) -> str:
        """`0.8M at 3e-05`: parameters and learning rate."""
        return f"{short_count(self.first.parameters)} at {self.first.learning_rate:.3g}"

    @cached_property
    def counts(self) -> np.ndarray:
        """Seeds of each recipe [R]."""
        return (~np.isnan(self.finals())).sum(1)

    def finals(self, domain: int | None = None) -> np.ndarray:
        """Final losses [R, S] of one domain, by number, or their mean; NaN where a pair was not trained."""
        return self._table(lambda run: run.final if domain is None else run.domains[domain].final)

    def initials(self) -> np.ndarray:
        """Initial mean losses [R, S]."""
        return self._table(lambda run: run.initial)

    def means(self, domain: int | None = None) -> np.ndarray:
        """Final losses [R], mean over the seeds."""
        return np.nanmean(self.finals(domain), axis=1)

    def _table(self, value: Any) -> np.ndarray:
        seeds = sorted({run.seed for run in self.runs})
        table_RS = np.full((len(self.recipes), len(seeds)), np.nan)
        for run in self.runs:
            table_RS[self.recipes.index(run.digest), seeds.index(run.seed)] = value(run)
        return table_RS


def read_tables(reports: Sequence[Report]) -> list[Table]:
    """The proxies sorted into settings, by size and then learning rate, rising.

    A proxy given twice counts once. Raises UserError when they were not measured on the same domains.
    """
    runs = sorted({_place(run): run for run in map(Trained.of, reports)}.values(), key=_place)
    _require_same_domains(runs)
    settings: dict[tuple[Any, ...], list[Trained]] = {}
    for run in runs:
        settings.setdefault(_setting(run), []).append(run)
    return [Table(tuple(group), tuple(sorted({run.digest for run in group}))) for group in settings.values()]


def siblings(table: Table, tables: Iterable[Table]) -> list[Table]:
    """The tables that differ from `table` in the learning rate at most, itself included."""
    return [other for other in tables if _but_rate(other.first) == _but_rate(table.first)]


def _but_rate(run: Trained) -> tuple[Any, ...]:
    return run.parameters, run.tokens, run.batch_sequences, run.setting


def _setting(run: Trained) -> tuple[Any, ...]:
    return *_but_rate(run), run.learning_rate


def _place(run: Trained) -> tuple[Any, ...]:
    return *_setting(run), run.digest, run.seed


def _require_same_domains(runs: Sequence[Trained]) -> None:
    for run in runs[1:]:
        ours, theirs = ({domain.digest: domain.name for domain in each.domains} for each in (runs[0], run))
        if set(ours) != set(theirs):
            raise UserError(
                f"recipe {runs[0].recipe} was measured on {_listing(ours)}, recipe {run.recipe} on {_listing(theirs)}",
                fix="give every `proxy.train` the same datasets as `validation`",
            )


def _listing(domains: Mapping[str, str]) -> str:
    return ", ".join(sorted(f"{name} ({digest[:8]})" for digest, name in domains.items()))
