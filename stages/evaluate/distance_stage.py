"""`evaluate.distance`: how far a model has moved from the one it was made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_ids_below, require_one_vocabulary, require_tokens_of
from stages.evaluate.measured import DISTANCE
from stages.evaluate.precision import ComputeType, gives_nan
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.evaluate.distance import Comparison, Distance

FIGURE = "layer-cosine.svg"


class DistanceParams(Parameters):
    """How much text to compare on, and in what precision both models run."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Windows to compare on at most, from the front."""
    dtype: ComputeType = "auto"
    """Type both models compute in. Distributions and cosines are always float32."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass. The hidden states of all layers of one batch are held, of both models."""
    trust_remote_code: bool = False
    """Run the code that comes in the models' directories, for an architecture that `transformers` lacks."""

    def smoke(self) -> Self:
        """A few windows."""
        return self.replaced(limit=min(self.limit or 4, 4))


class EvaluateDistance(Stage):
    """Compare a child model with its parent, token by token, on packed held-out text.

    KL(parent || child) of the next-token distributions (mean and 99th percentile, in nats), how often their first
    choices agree, the ratio of their perplexities, and, where depth and width match, the cosine of their hidden states
    layer by layer. Only models of one vocabulary and one tokenizer can be compared so.
    """

    Params = DistanceParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "parent": Input(Model),
        "child": Input(Model),
        "data": Input(Dataset, schema="tokens"),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = (*DISTANCE, "num_tokens", "min_layer_cosine")
    params: DistanceParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """One vocabulary, one tokenizer, and data in its tokens that fits both contexts."""
        require_one_vocabulary(inputs["parent"], inputs["child"])
        for name in ("parent", "child"):
            require_tokens_of(inputs[name], inputs["data"], where="data", role=name)

    def run(self, context: Context) -> None:
        """Load both models, compare, report."""
        from stages.data.windows import TokenWindows
        from stages.evaluate.distance import compare
        from stages.evaluate.loading import load_for_evaluation

        windows = TokenWindows(context.dataset("data"), context.scratch).tensor(self.params.limit)
        sources = [context.model(name) for name in ("parent", "child")]
        for source in sources:
            require_ids_below(int(windows.max()), source.config, where="data")
        trusted = self.params.trust_remote_code
        models = [load_for_evaluation(source, self.params.dtype, trust_remote_code=trusted) for source in sources]
        found = compare(*models, windows, batch_size=self.params.batch_size, layers=True, progress=context.progress)
        _require_numbers(found.distance)
        context.metrics(**_metrics(found))
        self._report(context, found, len(windows))

    def _report(self, context: Context, found: Comparison, num_windows: int) -> None:
        from stages.evaluate.figures import draw_layers
        from stages.evaluate.loading import computed_in

        out, figures = context.output("report"), [FIGURE] if found.layer_cosine else []
        if found.layer_cosine:
            draw_layers(out / FIGURE, found.layer_cosine)
        else:
            context.say("the models differ in depth or width: no layer-by-layer comparison")
        details = {
            **self.params.identity(),
            "computed_in": computed_in(self.params.dtype),
            "windows": num_windows,
            "sequence_length": context.dataset("data").card.sequence_length,
            "layer_cosine": list(found.layer_cosine),
            "figures": figures,
        }
        write_report(out, "Distance to parent", context.results, details)


def _metrics(found: Comparison) -> dict[str, float]:
    measured = found.distance
    layers = {"min_layer_cosine": min(found.layer_cosine[1:])} if found.layer_cosine else {}
    return {**measured.metrics(), "num_tokens": measured.num_tokens, **layers}


def _require_numbers(measured: Distance) -> None:
    for name, value in (("parent", measured.parent_perplexity), ("child", measured.child_perplexity)):
        if math.isnan(value):
            raise gives_nan(f"the {name} gives NaN", where=name)
