"""`proxy.rank`: data recipes in order, by the losses of their proxies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from stages.artifacts import Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.proxy.judgement import Judged

FIGURES = ("ranks.svg", "curves.svg", "agreement.svg")


class RankParameters(Parameters):
    """When a table is worth ranking, and how sure a difference has to be."""

    least_fall: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """How far the held-out loss must have fallen from initialisation, as a share of it, before recipes are ranked. 0
    here and in `least_share`: rank in any case, even a single recipe."""
    least_share: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """How far it must have fallen, as a share of its fall at the best learning rate given for the same proxies."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of every verdict that two recipes differ, over all pairs together, and of the intervals of ranks."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Draws of the seeds for the intervals of ranks."""
    top: Annotated[int, Field(ge=1)] = 3
    """Largest number of recipes for which the regret of trying only the proxies' best is told."""

    @property
    def in_any_case(self) -> bool:
        """Whether nothing is asked of a table."""
        return self.least_fall == self.least_share == 0

    def smoke(self) -> RankParameters:
        """A few steps move nothing, and recipes of generated text may hold the same: rank all the same."""
        return self.replaced(least_fall=0.0, least_share=0.0)


class ProxyRank(Stage):
    """Rank data recipes by the held-out losses of their proxies, overall and in each domain, ties told.

    Reads the reports of `proxy.train`. Proxies alike in all but recipe and seed make a table; each is ranked by itself.
    A table whose losses barely moved from initialisation is refused, with the learning rate to try; when none is left,
    the stage fails. A gap within what seeds alone do is a tie. With `larger`, runs of a larger model, the report tells
    how far each table orders the recipes as that model does, tuned to each recipe, and what following it would cost.
    The figures are those of the verdict: the lowest learning rate, of the largest proxies, that is not refused.
    """

    Params = RankParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "proxies": Input(Report, many=True),
        "larger": Input(Report, many=True, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = (
        "recipes",
        "tables",
        "refused",
        "best_or_tied",
        "tied_share",
        "seed_noise",
        "spread",
        "learning_rate",
        "spearman*",
        "kendall*",
        "pairwise_agreement*",
        "regret_top*",
    )
    paper = "2512.24503"
    params: RankParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Reports of proxies, measured on the same domains."""
        from stages.proxy.table import read_tables

        read_tables([*inputs["proxies"], *(inputs.get("larger") or ())])

    def run(self, context: Context) -> None:
        """Sort the reports into tables, refuse, rank, compare, draw and report."""
        from stages.proxy.comparison import FILE, comparison, markdown
        from stages.proxy.judgement import judge

        judged = judge(context.inputs["proxies"], context.inputs.get("larger") or [], self.params, context.seed)
        for message in judged.messages():
            context.say(message)
        if judged.verdict is None:
            raise UserError(
                "no proxies can be ranked: "
                + "; ".join(f"{each.table.label}: {each.refused}" for each in judged.tables),
                fix="train them longer or at a higher rate, see `proxy.probe`; or lower `least_fall` and `least_share`",
            )
        figures = judged.figures()
        context.metrics(**figures)
        drawn, rows = _draw(context, judged), comparison(judged.tables, judged.target)
        (context.output("report") / FILE).write_text(markdown(rows), encoding="utf-8")
        details = {**judged.details(), "comparison": rows, "parameters": self.params.identity(), "figures": drawn}
        write_report(context.output("report"), "Ranking of data recipes", figures, details)


def _draw(context: Context, judged: Judged) -> Sequence[str]:
    from stages.proxy.figures import draw_agreement, draw_curves, draw_ranks

    out, ranked = context.output("report"), [each for each in judged.tables if each.ranking]
    draw_ranks(out / FIGURES[0], [each.table for each in ranked], [each.ranking for each in ranked if each.ranking])
    draw_curves(out / FIGURES[1], [each.table for each in judged.tables])
    if not judged.target:
        return FIGURES[:2]
    draw_agreement(out / FIGURES[2], [each.table for each in judged.tables], judged.target)
    return FIGURES
