"""`transfer.select_heads`: which heads stay full attention, and which become linear."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field

from stages.artifacts import Model, Report, write_report
from stages.stage import Context, Input, Output, Parameters, Stage
from stages.transfer.halo import halo_scores
from stages.transfer.heads import HeadShape, head_shape
from stages.transfer.selection import (
    Choice,
    Map,
    fixed,
    global_best,
    global_random,
    groups_kept,
    heads_of,
    layer_best,
    layer_random,
    quotas,
    whole_layers,
)
from stages.transfer.selection_budget import Budget
from stages.transfer.selection_inputs import check_logs, check_scores, figure

FIGURE: Final = "selection.svg"
Strategy = Literal[
    "fixed",
    "layer-random",
    "global-random",
    "layer-interp",
    "global-interp",
    "global-interp-c",
    "even-layers",
    "interp-layers",
    "halo-layers",
]
SCORED: Final = ("layer-interp", "global-interp", "global-interp-c", "interp-layers")
"""Strategies that need scores."""
WHOLE_LAYERS: Final = ("even-layers", "interp-layers", "halo-layers")
"""Strategies that keep all heads of a layer or none."""


class SelectHeadsParams(Parameters):
    """How many heads stay, and who chooses them."""

    strategy: Strategy = "global-interp-c"
    """`global-interp`: the best heads by score. `global-interp-c`: the same, but at least one in each layer.
    `layer-interp`: the best of each layer, as many in every layer. `layer-random`, `global-random`: drawn by the seed.
    `fixed`: the first of every layer. Whole layers: `even-layers`, at even distances; `interp-layers`, by the sum of
    their heads' scores; `halo-layers`, by HALO's score."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the units that stay full attention: 0.25 is 3:1, 0.125 is 7:1. Rounded to whole units, halves up."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Query heads that stay full attention, instead of `ratio`."""
    granularity: Literal["head", "kv_group"] = "head"
    """The unit that is kept or converted as one: a query head, or all query heads of a key-value head. The cache
    shrinks by whole key-value heads, so choosing single heads saves less of it."""
    group_score: Literal["max", "sum"] = "max"
    """A key-value group's score: its best head's, or all its heads' together."""
    retrieval_metric: str = "needle_accuracy"
    """For `halo-layers`: the metric of the `retrieval` reports that counts, as a share from 0 to 1."""
    commonsense_metric: str = "accuracy_mean"
    """For `halo-layers`: the metric of the `commonsense` reports that counts, as a share from 0 to 1."""

    def smoke(self) -> Self:
        """A share that two narrow layers can give, by a strategy that needs no report of every layer."""
        strategy = "fixed" if self.strategy == "halo-layers" else self.strategy
        return self.replaced(strategy=strategy, ratio=max(self.ratio, 0.5), count=None)


class SelectHeads(Stage):
    """Choose the heads of full attention, by the strategies that HydraHead compares.

    The random and fixed ones need no scores and are there to compare with. `halo-layers` chooses whole layers, the
    baseline of HALO (arXiv 2601.22156), from one report of retrieval and one of common sense for each layer, of the
    model in which that layer alone is converted. The report holds the heads of each layer and draws them.
    """

    Params = SelectHeadsParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "scores": Input(Report, optional=True),
        "retrieval": Input(Report, optional=True, many=True),
        "commonsense": Input(Report, optional=True, many=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"selection": Output(Report)}
    metrics = ("full_heads", "full_share", "kv_groups_kept", "cache_bytes_share")
    paper = "2606.20097"
    params: SelectHeadsParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The strategy has what it needs, of this model, and enough heads to keep."""
        shape = head_shape(inputs["model"])
        if self.params.strategy in SCORED or inputs.get("scores") is not None:
            check_scores(self.params.strategy, inputs.get("scores"), inputs["model"], shape)
        if self.params.strategy == "halo-layers":
            for name in ("retrieval", "commonsense"):
                check_logs(name, inputs.get(name) or [], shape)
        self._budget(shape).count()

    def run(self, context: Context) -> None:
        """Choose and report."""
        from stages.transfer.head_map import draw_selection

        shape, out = head_shape(context.model("model")), context.output("selection")
        scored = context.inputs["scores"].content["details"] if context.inputs.get("scores") is not None else {}
        layers = self._layer_scores(context.inputs) if self.params.strategy == "halo-layers" else []
        units = self._choose(shape, self._unit_scores(scored), layers, random.Random(context.seed))
        heads = heads_of(units, self._heads_per_unit(shape))
        context.metrics(**_figures(heads, shape))
        draw_selection(out / FIGURE, shape, heads, scored.get("scores"))
        details = {
            "full_heads": heads,
            "mask": [[int(head in of_layer) for head in range(shape.num_heads)] for of_layer in heads],
            **({"layer_scores": layers} if layers else {}),
            "model": {"digest": context.model("model").digest},
            "figures": [FIGURE],
            "seed": context.seed,
            "parameters": self.params.identity(),
        }
        write_report(out, "Head selection", context.results, details)

    def _choose(self, shape: HeadShape, scores: Map, layer_scores: Sequence[float], rng: random.Random) -> Choice:
        num_layers, num_units = shape.num_layers, shape.num_heads // self._heads_per_unit(shape)
        count = self._budget(shape).count()
        match self.params.strategy:
            case "fixed":
                return fixed(num_layers, count)
            case "layer-random":
                return layer_random(num_layers, num_units, count, rng)
            case "global-random":
                return global_random(num_layers, num_units, count, rng)
            case "layer-interp":
                return layer_best(scores, count)
            case "even-layers":
                return whole_layers(quotas(num_layers, count), num_units, count)
            case "interp-layers":
                return whole_layers([sum(of_layer) for of_layer in scores], num_units, count)
            case "halo-layers":
                return whole_layers(layer_scores, num_units, count)
            case "global-interp" | "global-interp-c":
                return global_best(scores, count, least=int(self.params.strategy == "global-interp-c"))

    def _unit_scores(self, scored: Mapping[str, Any]) -> Map:
        by_head = self.params.granularity == "head"
        return (scored.get("scores") if by_head else scored.get("group_scores", {}).get(self.params.group_score)) or []

    def _layer_scores(self, inputs: Mapping[str, Any]) -> list[float]:
        names = {"retrieval": self.params.retrieval_metric, "commonsense": self.params.commonsense_metric}
        measured = {name: [100 * figure(one, metric, name) for one in inputs[name]] for name, metric in names.items()}
        return halo_scores(**measured)

    def _heads_per_unit(self, shape: HeadShape) -> int:
        return shape.heads_per_group if self.params.granularity == "kv_group" else 1

    def _budget(self, shape: HeadShape) -> Budget:
        params = self.params
        per_unit = shape.num_heads if params.strategy in WHOLE_LAYERS else self._heads_per_unit(shape)
        return Budget(params.strategy, params.ratio, params.count, per_unit, shape)


def _figures(heads: Choice, shape: HeadShape) -> dict[str, float]:
    kept, groups = sum(map(len, heads)), groups_kept(heads, shape.heads_per_group)
    return {
        "full_heads": kept,
        "full_share": kept / (shape.num_layers * shape.num_heads),
        "kv_groups_kept": groups,
        "cache_bytes_share": groups / (shape.num_layers * shape.num_groups),
    }
