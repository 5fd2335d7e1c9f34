"""`evaluate.perplexity`: how well a model predicts held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.evaluate.matching import require_ids_below, require_tokens_of
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage


class PerplexityParams(Parameters):
    """How much text to measure on, and in what precision the model runs."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Windows to measure on at most, from the front."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type the model computes in. Log-probabilities are always float32."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8
    """Windows in a forward pass."""
    trust_remote_code: bool = False
    """Run the code that comes in the model's directory, for an architecture that `transformers` lacks."""


class EvaluatePerplexity(Stage):
    """Measure perplexity and bits per byte on packed windows that do not overlap.

    Each window predicts its tokens after the first from those before it in the window: short windows cost a model some
    context, so compare figures only at one `sequence_length`. Bits per byte compare across tokenizers.
    """

    Params = PerplexityParams
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model), "data": Input(Dataset, schema="tokens")}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    params: PerplexityParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The tokens are the model's own, and a window fits its context."""
        require_tokens_of(inputs["model"], inputs["data"], where="data")

    def run(self, context: Context) -> None:
        """Load the model, measure, report."""
        import torch

        from grafts.loader import load_model
        from stages.data.windows import TokenWindows
        from stages.evaluate.likelihood import likelihood

        source, data = context.model("model"), context.dataset("data")
        windows = TokenWindows(data, context.scratch).tensor(self.params.limit)
        require_ids_below(int(windows.max()), source.config, where="data")
        dtype = getattr(torch, self.params.dtype)
        model = load_model(source.path, dtype=dtype, trust_remote_code=self.params.trust_remote_code)
        found = likelihood(model, windows, batch_size=self.params.batch_size, progress=context.progress)
        context.metrics(
            perplexity=found.perplexity,
            bits_per_byte=found.bits_per_byte(data.card.num_tokens / data.card.num_bytes),
            num_tokens=found.num_tokens,
            parameters=model.num_parameters(),
            bytes=sum(shard.stat().st_size for shard in source.path.glob("*.safetensors")),
        )
        details = {"sequence_length": data.card.sequence_length, "windows": len(windows), **self.params.identity()}
        write_report(context.output("report"), "Perplexity", context.results, details)
