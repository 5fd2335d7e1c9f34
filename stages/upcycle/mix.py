"""`upcycle.mix`: train a mixture of experts, and see which experts the tokens of each domain go to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_one_vocabulary, require_tokens_of
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools
from stages.training.settings import TRAINED, MeasuredTraining
from stages.upcycle.matching import check_one_length
from stages.upcycle.routing import experts_per_token

FIGURE = "token-domains-by-expert.svg"


class MixParameters(MeasuredTraining):
    """How to train a mixture. The defaults are BAM's (arXiv 2408.08274), a budget of tokens aside."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Decoupled weight decay of matrices; vectors (norms, biases) never decay."""
    balance_weight: Annotated[float, Field(ge=0, le=1)] = 1e-2
    """Weight of the load-balance loss, 1 when every expert gets as many tokens; the paper does not tell it."""
    z_weight: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Weight of the mean squared logsumexp of the routers' logits; the paper does not tell it."""
    micro_batch: Annotated[int, Field(ge=1)] = 4
    """Sequences in one forward pass of one worker. The load is balanced over them, so here it decides the result."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of the held-out data, and of each domain, that the mixture is measured on, from the start."""

    def smaller(self, workers: int) -> Self | None:
        """Activations recomputed, then more shared out by ZeRO; never another micro-batch."""
        if not self.activation_checkpointing:
            return self.replaced(activation_checkpointing=True)
        return self.replaced(zero_stage=self.zero_stage + 1) if workers > 1 and self.zero_stage < 3 else None


class UpcycleMix(Stage):
    """Train all weights of a mixture on text of its domains, by cross-entropy, load-balance and z-loss.

    Curves show each loss, the load of the fullest and the emptiest expert, the routers' entropy (of attention experts
    too) and the share of dropped assignments where there is a capacity. With `domains`, held-out text of each, the
    report draws which experts their tokens go to.
    """

    Params = MixParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "data": Input(Dataset, schema="tokens", many=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
        "domains": Input(Dataset, schema="tokens", optional=True, many=True),
        "parent": Input(Model, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    distributed = True
    isolated = True
    metrics = (*TRAINED, "router_entropy", "load_max", "load_min", "specialisation")
    paper = "2408.08274"
    params: MixParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A mixture of experts, and data of one window length in its tokens."""
        model = inputs["model"]
        experts_per_token(model)
        if inputs.get("parent") is not None:
            require_one_vocabulary(inputs["parent"], model, ("parent", "model"))
        many = {f"{name}[{i}]": each for name in ("data", "domains") for i, each in enumerate(inputs.get(name) or ())}
        held = {} if inputs.get("heldout") is None else {"heldout": inputs["heldout"]}
        for name, data in {**many, **held}.items():
            require_tokens_of(model, data, name)
        check_one_length({name: data for name, data in many.items() if name.startswith("data")})

    def run(self, context: Context) -> None:
        """Train, save, measure, draw and report."""
        from stages.training.launch import run_training
        from stages.upcycle.mixture import MixtureTraining

        _require_whole_micro_batches(self.params, context.resources.workers)
        model, domains = context.model("model"), context.inputs.get("domains") or []
        # The longest comes first: it sets the length of an epoch.
        first, *more = sorted(context.inputs["data"], key=lambda data: -data.card.num_rows)
        recipe = MixtureTraining(
            model=model,
            data=first,
            heldout=context.inputs.get("heldout"),
            heldout_windows=self.params.heldout_windows,
            measure_batch=self.params.micro_batch,
            parent=context.inputs.get("parent") or model,
            cache=context.scratch / "windows",
            out=context.output("model"),
            more=more,
            shares=[1 / (1 + len(more))] * (1 + len(more)),
            top_k=experts_per_token(model),
            balance_weight=self.params.balance_weight,
            z_weight=self.params.z_weight,
            domains=domains,
            loads_file=context.scratch / "loads.json",
        )
        result = run_training(recipe, self.params, context)
        loads = json.loads(recipe.loads_file.read_text(encoding="utf-8"))
        figures = {**result.figures, **load_figures(loads)}
        context.metrics(**figures, **result.cost)
        details = {
            **result.details(self.params, context.seed),
            "domains": [{"name": data.short_name or "text", **each} for data, each in zip(domains, loads, strict=True)],
            "figures": [FIGURE] if loads else [],
        }
        if loads:
            _draw(context.output("report") / FIGURE, details["domains"])
        write_report(context.output("report"), "Training of a mixture", figures, details)


def _draw(file: Path, domains: Sequence[Mapping[str, Any]]) -> None:
    from stages.upcycle.heat_map import draw_heat_map

    panels = [("feed-forward experts", [_mean(each["feed_forward"]) for each in domains])]
    if domains[0]["attention"]:
        panels.append(("attention experts", [_mean(each["attention"]) for each in domains]))
    draw_heat_map(file, [each["name"] for each in domains], panels)


def _require_whole_micro_batches(params: MixParameters, workers: int) -> None:
    """Workers must cut the batch where one worker would, since the load is balanced over each micro-batch."""
    if workers > 1 and params.batch_sequences % (workers * params.micro_batch):
        raise UserError(
            f"batch_sequences: {params.batch_sequences} does not divide into micro-batches of {params.micro_batch} on "
            f"{workers} workers, and over smaller ones the load is balanced otherwise",
            fix=f"make batch_sequences a multiple of {workers * params.micro_batch}, or change micro_batch or the "
            "workers",
        )


def load_figures(loads: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the loads of the domains come to; nothing without domains.

    `specialisation` is how much the expert tells of the domain: the mutual information of the two in nats, mean over
    the layers, with as much text of each domain. 0: every domain goes to the experts alike.
    """
    if not loads:
        return {}
    by_layer = [list(rows) for rows in zip(*(each["feed_forward"] for each in loads), strict=True)]
    pooled = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in by_layer]
    return {
        "router_entropy": sum(each["entropy"] for each in loads) / len(loads),
        "load_max": sum(max(row) for row in pooled) / len(pooled),
        "load_min": sum(min(row) for row in pooled) / len(pooled),
        "specialisation": sum(_information(rows, pool) for rows, pool in zip(by_layer, pooled, strict=True))
        / len(pooled),
    }


def _information(rows: Sequence[Sequence[float]], pooled: Sequence[float]) -> float:
    terms = [share * math.log(share / mean) for row in rows for share, mean in zip(row, pooled, strict=True) if share]
    return sum(terms) / len(rows)


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Shares of each expert, mean over the layers."""
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
