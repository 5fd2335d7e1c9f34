"""What `proxy.rank` finds: each table refused or ranked, compared with the larger runs, and one of them the verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from stages.artifacts import Report
from stages.errors import UserError
from stages.proxy.agreement import spearman
from stages.proxy.judged_table import JudgedTable, judge_table
from stages.proxy.rank import RankParameters
from stages.proxy.ranking import Agreement, tuned
from stages.proxy.record import Trained
from stages.proxy.table import Table, read_tables, siblings


@dataclass(frozen=True)
class Judged:
    """All tables, by size and then learning rate, rising."""

    tables: tuple[JudgedTable, ...]
    lone: tuple[Table, ...]
    """Tables of one recipe, which rank nothing."""
    target: dict[str, float]
    """Losses of the larger model tuned to each recipe, by digest; empty without larger runs."""

    @cached_property
    def verdict(self) -> JudgedTable | None:
        """The lowest learning rate of the largest proxies that is not refused."""
        ranked = [each for each in self.tables if each.ranking]
        return min(ranked, key=lambda t: (-t.table.first.parameters, t.table.first.learning_rate), default=None)

    @cached_property
    def standard(self) -> JudgedTable | None:
        """The highest learning rate among the siblings of the verdict, if that is another one."""
        if self.verdict is None:
            return None
        alike = siblings(self.verdict.table, [each.table for each in self.tables])
        last = [each for each in self.tables if each.table in alike][-1]
        return last if last is not self.verdict else None

    def messages(self) -> list[str]:
        """What a person should read, a line each."""
        lines = [each.line() for each in self.tables]
        lines += [f"not ranked, {table.label}: it has one recipe, {table.names[0]}" for table in self.lone]
        if self.verdict is None or self.verdict.ranking is None:
            return lines
        table, ranking = self.verdict.table, self.verdict.ranking
        names = [table.names[index] for index in sorted(ranking.best, key=lambda index: ranking.losses[index])]
        if not ranking.noise.freedom:
            lines.append("one seed a recipe: nothing is known of the noise, so all gaps count as ties")
        tied = f", tied with {', '.join(names[1:])}" if names[1:] else ""
        lines.append(f"best is {names[0]}, by {table.label}{tied}")
        if table.first.reduction == 1:
            lines.append("this is the standard learning rate, whose order often fails at scale: set `reduction`")
        return lines

    def figures(self) -> dict[str, float]:
        """The metrics of the stage."""
        verdict = self.verdict
        assert verdict is not None
        assert verdict.ranking is not None
        ranking = verdict.ranking
        found = {
            "recipes": len(verdict.table.recipes),
            "tables": len(self.tables),
            "refused": sum(bool(each.refused) for each in self.tables),
            "best_or_tied": len(ranking.best),
            "tied_share": ranking.tied_share,
            "spread": float(ranking.losses.max() - ranking.losses.min()),
            "learning_rate": verdict.table.first.learning_rate,
        }
        if ranking.noise.freedom:
            found["seed_noise"] = ranking.noise.deviation
        for suffix, each in (("", verdict), ("_standard", self.standard)):
            if each is not None and each.agreement is not None:
                found |= _agreement_figures(each.agreement, suffix)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def details(self) -> dict[str, Any]:
        """As the report has them."""
        return {
            "verdict": self.verdict.table.label if self.verdict else None,
            "best": self.verdict.best() if self.verdict else None,
            "tables": [each.details() for each in self.tables],
            "agreement_of_tables": self._between_tables(),
            "larger": self.target,
        }

    def _between_tables(self) -> list[dict[str, Any]]:
        """Spearman's correlation of every two tables, over the recipes that both have."""
        found = []
        for number, first in enumerate(self.tables):
            for second in self.tables[number + 1 :]:
                common = sorted(set(first.table.recipes) & set(second.table.recipes))
                if len(common) < 2:
                    continue
                pair = [t.table.means()[[t.table.recipes.index(digest) for digest in common]] for t in (first, second)]
                value = spearman(*pair)
                found.append({"of": [first.table.label, second.table.label], "recipes": len(common)})
                found[-1]["spearman"] = value if math.isfinite(value) else None
        return found


def judge(proxies: Sequence[Report], larger: Sequence[Report], params: RankParameters, seed: int) -> Judged:
    """Judge every table that `proxies` make, against the larger runs. Raises UserError with nothing to rank."""
    tables, targets = read_tables(proxies), _targets(larger)
    least = 1 if params.in_any_case else 2
    if all(len(table.recipes) < least for table in tables):
        raise UserError(
            f"the proxies make {len(tables)} tables of one recipe each: nothing to rank",
            fix="train one proxy a recipe with everything else equal: a matrix over recipes",
        )
    judged = tuple(judge_table(table, tables, targets, params, seed) for table in tables if len(table.recipes) >= least)
    lone = tuple(table for table in tables if len(table.recipes) < least)
    return Judged(judged, lone, targets[0] if targets else {})


def _targets(larger: Sequence[Report]) -> list[dict[str, float]]:
    """Losses of the larger model by recipe: the mean of the domains, then each domain."""
    if not larger:
        return []
    tables = read_tables(larger)
    if varied := _varied([table.first for table in tables]):
        told = ", ".join(f"{name} ({' and '.join(values)})" for name, values in varied.items())
        raise UserError(
            f"the larger runs differ in {told}, expected one model and budget",
            where="larger",
            fix="give runs that differ in recipe, learning rate, batch and seed alone: the best of each recipe counts",
        )
    return [tuned(tables), *(tuned(tables, number) for number in range(len(tables[0].first.domains)))]


def _varied(runs: Sequence[Trained]) -> dict[str, list[str]]:
    """What the runs do not have in common beside learning rate and batch, with its values."""
    known = [{"parameters": run.parameters, "tokens": run.tokens, **json.loads(run.setting)} for run in runs]
    values = {name: sorted({json.dumps(each.get(name)) for each in known}) for name in chain(*known)}
    return {name: found for name, found in values.items() if len(found) > 1}


def _agreement_figures(found: Agreement, suffix: str) -> dict[str, float]:
    regrets = {f"regret_top{k}{suffix}": value for k, value in found.regret.items()}
    return {
        f"spearman{suffix}": found.spearman,
        f"kendall{suffix}": found.kendall,
        f"pairwise_agreement{suffix}": found.pairwise,
        **regrets,
    }
