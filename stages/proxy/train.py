"""`proxy.train`: a small model that tells how good a data recipe is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from stages.artifacts import Dataset, Model, Report, write_report
from stages.proxy.checks import check_proxy_inputs
from stages.proxy.one_run import plan_of, train_proxy, trained_details
from stages.proxy.settings import ProxyTrainParameters
from stages.stage import Context, Input, Output, Stage
from stages.training.preflight import require_training_tools


class ProxyTrain(Stage):
    """Train a proxy on one data recipe, at the standard learning rate or a reduced one, everything else kept.

    One arm of a matrix over recipes, reductions and seeds; `proxy.rank` reads the reports of all. Proxies are ranked
    by their loss on `validation`, one dataset a domain. At a reduced learning rate that order holds for larger models
    tuned to each recipe; at the standard rate it also tells how well that rate happens to suit the recipe. With
    `optimum`, a report of `proxy.step_law`, `proxy.sweep` or `proxy.probe`, its learning rate and batch are used.
    """

    Params = ProxyTrainParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "data": Input(Dataset, schema="tokens"),
        "validation": Input(Dataset, schema="tokens", many=True),
        "optimum": Input(Report, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report), "model": Output(Model)}
    distributed = True
    metrics = (
        "loss",
        "training_loss",
        "validation_*",
        "initial_loss",
        "fall",
        "learning_rate",
        "batch_sequences",
        "reduction",
        "epochs",
        "parameters",
        "non_embedding_parameters",
        "tokens_per_second",
        "peak_memory_gib",
    )
    paper = "2512.24503"
    params: ProxyTrainParameters

    def preflight(self) -> None:
        """The packages that training imports are there."""
        require_training_tools()

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Windows in the tokens of the model, held-out ones apart from the data, an optimum that tells something."""
        check_proxy_inputs(self.params, inputs)
        if inputs.get("optimum") is not None:
            optimum_of(inputs["optimum"])

    def run(self, context: Context) -> None:
        """Train, measure and report."""
        from stages.proxy.figures import draw_domains

        optimum = context.inputs.get("optimum")
        length = context.dataset("data").card.sequence_length
        plan = plan_of(self.params, {} if optimum is None else optimum_of(optimum), length)
        context.say(f"learning rate {plan.learning_rate:.3g}: {plan.standard_rate:.3g} / {plan.reduction:g}")
        cache, out = context.scratch / "windows", context.output("model")
        finished = train_proxy(self.params, plan, context, self.params.evaluations, cache, out)
        trained, figures = finished.trained, finished.figures()
        if trained.epochs > 1:
            context.say(f"the data is seen {trained.epochs:.1f} times; what is known of small rates assumes once")
        context.metrics(**figures, reduction=plan.reduction, **finished.cost)
        draw_domains(context.output("report") / "curves.svg", trained)
        details = {"proxy": trained_details(trained), "parameters": self.params.identity(), "figures": ["curves.svg"]}
        write_report(context.output("report"), "Training of a proxy", figures, details)


def optimum_of(report: Report) -> dict[str, float]:
    """What `report` tells in the place of parameters: `learning_rate`, maybe `batch_tokens` and `reduction`.

    Raises UserError for the report of a stage that looks for none of these.
    """
    fix = "give the report of `proxy.step_law`, `proxy.sweep` or `proxy.probe`"
    return report.detail("optimum", "tells no standard learning rate", where="optimum", fix=fix)
