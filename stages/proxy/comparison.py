"""The one table of an experiment: each recipe's loss and rank in every setting, beside the larger model's. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from stages.proxy.judged_table import JudgedTable
from stages.proxy.ranking import Agreement

FILE = "comparison.md"
Row = list[str]


def comparison(tables: Sequence[JudgedTable], target: Mapping[str, float]) -> list[Row]:
    """Rows of a table, the first being its head: recipes, the best for the larger model first, then what it comes to.

    A cell has the mean held-out loss (nats a token), the rank and its interval; of a refused table the loss alone.
    `target` are the larger model's losses by digest of the recipe; without any, recipes are in the order of the last
    table.
    """
    names = {digest: name for each in tables for digest, name in _names(each).items()}
    last = dict(zip(tables[-1].table.recipes, tables[-1].table.means(), strict=True))
    order = sorted(names, key=lambda digest: (target.get(digest, math.inf), last.get(digest, math.inf), digest))
    head = ["recipe", *(each.table.label for each in tables), *(["larger, tuned"] if target else [])]
    rows = [
        [names[digest], *(_cell(each, digest) for each in tables), *([_loss(target.get(digest))] if target else [])]
        for digest in order
    ]
    blank = [""] if target else []
    return [head, *rows, *([name, *map(tell, tables), *blank] for name, tell in _summary(tables, bool(target)))]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)) + "\n"


Tell = Callable[[JudgedTable], str]


def _summary(tables: Sequence[JudgedTable], compared: bool) -> list[tuple[str, Tell]]:
    """What is told of whole tables, by name."""
    moved: list[tuple[str, Tell]] = [
        ("ranked", lambda each: "refused" if each.refused else "yes"),
        ("fall, share of the largest", lambda each: f"{each.moved.share:.2f}"),
        ("deviation of a seed", lambda each: _seed_noise(each)),
        ("pairs that are ties", lambda each: f"{each.ranking.tied_share:.0%}" if each.ranking else "–"),
    ]
    if not compared:
        return moved
    domains = [domain.name for domain in tables[0].table.first.domains]
    return [
        ("Spearman with the larger runs", lambda each: _spearman(each.agreement)),
        *(
            (f"on {name} alone", lambda each, number=number: _spearman(each.agreement_by_domain[number]))
            for number, name in enumerate(domains)
        ),
        ("pairs in the same order", lambda each: f"{each.agreement.pairwise:.0%}" if each.agreement else "–"),
        ("regret of the best 1, 2, …", lambda each: _regret(each.agreement)),
        *moved,
    ]


def _cell(each: JudgedTable, digest: str) -> str:
    if digest not in each.table.recipes:
        return "–"
    index = each.table.recipes.index(digest)
    loss, ranking = _loss(float(each.table.means()[index])), each.ranking
    if ranking is None:
        return loss
    return f"{loss} ({ranking.ranks[index]:g}; {ranking.low[index]:g}–{ranking.high[index]:g})"


def _names(each: JudgedTable) -> dict[str, str]:
    return dict(zip(each.table.recipes, each.table.names, strict=True))


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _seed_noise(each: JudgedTable) -> str:
    return f"{each.ranking.noise.deviation:.3f}" if each.ranking and each.ranking.noise.freedom else "–"


def _spearman(found: Agreement | None) -> str:
    return "–" if found is None or math.isnan(found.spearman) else f"{found.spearman:.2f}"


def _regret(found: Agreement | None) -> str:
    return ", ".join(f"{value:.3f}" for _, value in sorted(found.regret.items())) if found else "–"
