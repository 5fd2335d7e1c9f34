"""What `proxy.rank` finds of one table: why it is refused, or its order, ties, and agreement with the larger runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

from stages.proxy.movement import Movement, refusal
from stages.proxy.rank import RankParameters
from stages.proxy.ranking import Agreement, Ranking, agreement, rank_recipes
from stages.proxy.table import Table


@dataclass(frozen=True)
class JudgedTable:
    """One table, and what was found of it."""

    table: Table
    moved: Movement
    refused: str
    """Why it is not ranked; "" when it is."""
    ranking: Ranking | None
    """By the mean of all domains."""
    by_domain: tuple[Ranking, ...]
    agreement: Agreement | None
    """With the larger runs, for refused tables as well."""
    agreement_by_domain: tuple[Agreement | None, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The recipes, the best first."""
        if self.ranking is None:
            return []
        ranking, best = self.ranking, set(self.ranking.best)
        order = sorted(range(len(self.table.recipes)), key=lambda index: (ranking.losses[index], index))
        return [
            {
                "recipe": self.table.names[index],
                "digest": self.table.recipes[index],
                "rank": float(ranking.ranks[index]),
                "rank_interval": [float(ranking.low[index]), float(ranking.high[index])],
                "loss": float(ranking.losses[index]),
                "seeds": int(self.table.counts[index]),
                "best_or_tied": index in best,
                "tied_with": [self.table.names[i] for i in order if i != index and not ranking.different[index][i]],
                "ranks_by_domain": self._domain_ranks(index),
            }
            for index in order
        ]

    def best(self) -> dict[str, Any]:
        """The recipe of the lowest loss, and the weights of the mixture that it is, if it is one."""
        assert self.ranking is not None, "a refused table has no best"
        index = int(self.ranking.losses.argmin())
        run = next(run for run in self.table.runs if run.digest == self.table.recipes[index])
        return {"recipe": self.table.names[index], "mixture": dict(run.mixture)}

    def line(self) -> str:
        """The order in one line, `=` before a recipe that is tied with the one before it, or why there is none."""
        if self.ranking is None:
            return f"not ranked, {self.table.label}: {self.refused}"
        ranking, order = self.ranking, sorted(range(len(self.table.recipes)), key=self.ranking.losses.__getitem__)
        text = f"{self.table.label}: {self.table.names[order[0]]} {ranking.losses[order[0]]:.4g}"
        for before, index in itertools.pairwise(order):
            sign = "<" if ranking.different[before][index] else "="
            text += f" {sign} {self.table.names[index]} {ranking.losses[index]:.4g}"
        found = self.agreement
        return text + (f"; Spearman {found.spearman:.2f} with the larger runs" if found else "")

    def details(self) -> dict[str, Any]:
        """As the report has it."""
        run, noise = self.table.first, self.ranking.noise if self.ranking else None
        return {
            "label": self.table.label,
            "learning_rate": run.learning_rate,
            "reduction": run.reduction,
            "parameters": run.parameters,
            "tokens": run.tokens,
            "batch_sequences": run.batch_sequences,
            "refused": self.refused,
            **asdict(self.moved),
            "seed_noise": noise.deviation if noise and noise.freedom else None,
            "ranks": self.rows(),
            "agreement": _plain(self.agreement) if self.agreement else None,
            "agreement_by_domain": {
                domain.name: _plain(each)
                for domain, each in zip(run.domains, self.agreement_by_domain, strict=True)
                if each
            },
        }

    def _domain_ranks(self, index: int) -> dict[str, float]:
        domains = self.table.first.domains
        return {domain.name: float(r.ranks[index]) for domain, r in zip(domains, self.by_domain, strict=True)}


def judge_table(
    table: Table, tables: list[Table], targets: list[dict[str, float]], params: RankParameters, seed: int
) -> JudgedTable:
    """Judge `table`, one of `tables`; `targets` are the larger model's losses overall and in each domain, if any."""
    moved, domains = Movement.of(table, tables), range(len(table.first.domains))
    refused = refusal(table, moved, params.least_fall, params.least_share)
    rank = [
        rank_recipes(table.finals(domain), table.counts, params.confidence, params.bootstrap, seed)
        for domain in (() if refused else (None, *domains))
    ]
    agreements = [
        agreement(table, target, params.top, domain) for target, domain in zip(targets, (None, *domains), strict=False)
    ]
    return JudgedTable(
        table=table,
        moved=moved,
        refused=refused,
        ranking=rank[0] if rank else None,
        by_domain=tuple(rank[1:]),
        agreement=agreements[0] if agreements else None,
        agreement_by_domain=tuple(agreements[1:]) or (None,) * len(domains),
    )


def _plain(found: Agreement) -> dict[str, Any]:
    """`found` as JSON has it: a correlation of nothing is null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(found).items()
    }
