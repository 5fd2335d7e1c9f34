"""`evaluate.perplexity`: how well a model predicts held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_ids_below, require_text_or_tokens, window_length
from stages.evaluate.precision import ComputeType
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.evaluate.text_windows import TextWindows


class PerplexityParams(Parameters):
    """How much text to measure on, by which protocol, and in what precision the model runs."""

    window: Annotated[int, Field(ge=2)] | None = None
    """Tokens the model reads at once, for text; the model's context when left out, 2048 at most. Packed tokens bring
    their own length."""
    protocol: Literal["disjoint", "rolling"] = "disjoint"
    """How text becomes windows. `disjoint` (GPTQ and the quantisation papers): nothing is shared, and the first token
    of a window is not predicted. `rolling` (lm-eval's `loglikelihood_rolling`): every token is predicted, the first of
    a window from the last of the one before. Packed tokens are always `disjoint`."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Windows to measure on at most, from the front."""
    dtype: ComputeType = "auto"
    """Type the model computes in. Log-probabilities are always float32."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8
    """Windows in a forward pass."""
    trust_remote_code: bool = False
    """Run the code that comes in the model's directory, for an architecture that `transformers` lacks."""

    def smoke(self) -> Self:
        """A few windows."""
        return self.replaced(limit=min(self.limit or 4, 4))


class EvaluatePerplexity(Stage):
    """Measure perplexity, byte perplexity and bits per byte on windows of held-out text.

    `data` is packed tokens of the model's tokenizer, or text: its documents are then joined by a blank line, encoded in
    one piece and cut into windows, the last and shorter one included (GPTQ, arXiv 2210.17323). Perplexity depends on
    window and tokenizer: compare it at one window and one tokenizer. Bits per byte compare across tokenizers.
    """

    Params = PerplexityParams
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model), "data": Input(Dataset)}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = ("perplexity", "byte_perplexity", "bits_per_byte", "num_tokens", "num_bytes", "parameters", "bytes")
    paper = "2210.17323"
    params: PerplexityParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The data is text, or the model's own tokens, and a window fits the model's context."""
        data: Dataset = inputs["data"]
        require_text_or_tokens(inputs["model"], data, self.params.window, where="data")
        if data.card.schema == "tokens" and self.params.protocol == "rolling":
            raise UserError(
                "protocol: rolling shares a token between windows, packed tokens share none",
                where="data",
                fix="give the text dataset itself, or leave protocol out",
            )

    def run(self, context: Context) -> None:
        """Load the model, measure, report."""
        from stages.evaluate.likelihood import likelihood
        from stages.evaluate.loading import load_for_evaluation

        source, windows = context.model("model"), self._windows(context)
        for ids in (windows.windows, *([] if windows.tail is None else [windows.tail])):
            require_ids_below(int(ids.max()) if ids.numel() else 0, source.config, where="data")
        model = load_for_evaluation(source, self.params.dtype, trust_remote_code=self.params.trust_remote_code)
        found = likelihood(
            model,
            windows.windows,
            tail_T=windows.tail,
            tail_targets=windows.tail_targets,
            batch_size=self.params.batch_size,
            progress=context.progress,
        )
        context.metrics(
            perplexity=found.perplexity,
            byte_perplexity=found.byte_perplexity(windows.tokens_per_byte),
            bits_per_byte=found.bits_per_byte(windows.tokens_per_byte),
            num_tokens=found.num_tokens,
            num_bytes=windows.num_bytes,
            parameters=model.num_parameters(),
            bytes=sum(shard.stat().st_size for shard in source.path.glob("*.safetensors")),
        )
        write_report(context.output("report"), "Perplexity", context.results, self._details(context, windows))

    def _windows(self, context: Context) -> TextWindows:
        from stages.data.windows import TokenWindows
        from stages.evaluate.text_windows import TextWindows, text_windows

        model, data, limit = context.model("model"), context.dataset("data"), self.params.limit
        if data.card.schema == "text":
            window = window_length(model.config, self.params.window)
            return text_windows(model, data, window, limit, self.params.protocol)
        ids_NT = TokenWindows(data, context.scratch).tensor(limit)
        # The card counts bytes for the whole dataset; a limit takes its share of them.
        share = ids_NT.numel() / data.card.num_tokens
        return TextWindows(ids_NT, None, 0, ids_NT.numel(), data.card.num_bytes * share)

    def _details(self, context: Context, windows: TextWindows) -> dict[str, Any]:
        from stages.evaluate.loading import computed_in

        card, config = context.dataset("data").card, context.model("model").config
        length = card.sequence_length or window_length(config, self.params.window)
        return {
            **self.params.identity(),
            "computed_in": computed_in(self.params.dtype),
            "data": card.schema,
            "window": length,
            "sequence_length": length,
            "windows": len(windows.windows) + (windows.tail is not None),
            "last_window_targets": windows.tail_targets or windows.windows.shape[1] - 1,
            "tokens_per_byte": windows.tokens_per_byte,
        }
