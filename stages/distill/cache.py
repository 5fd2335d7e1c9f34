"""`distill.cache`: what a teacher says about a text, written down once, so that many students can learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Model
from stages.distill.cache_card import Stored
from stages.errors import UserError
from stages.evaluate.matching import require_tokens_of, text_config
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from stages.training.precision import Precision


class CacheParameters(Parameters):
    """How much of the teacher's distributions is kept."""

    top_k: Annotated[int, Field(ge=1)] = 64
    """Tokens kept at each position, the likeliest; all others count as one outcome, the tail."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The distributions are softened by it before they are cut: the loss must use the same."""
    stored: Stored = "float16"
    """Type of the log-probabilities: `float16` keeps three digits, `float32` doubles their size."""
    precision: Precision = "auto"
    """Arithmetic of the teacher: `auto` is `bf16` where the hardware has instructions for it, else `fp32`."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass."""

    def smoke(self) -> Self:
        """A few tokens a position: a small vocabulary has no more to tell."""
        return self.replaced(top_k=min(self.top_k, 16))


class DistillCache(Stage):
    """Write down a teacher's likeliest next tokens with their log-probabilities, and the mass of all others.

    The result is the data again, with what the teacher says at each position beside it: give it to `distill.logits` as
    input `cache`, and the teacher need not run. Cut short and run again, it goes on where it was.
    """

    Params = CacheParameters
    inputs: ClassVar[Mapping[str, Input]] = {"teacher": Input(Model), "data": Input(Dataset, schema="tokens")}
    outputs: ClassVar[Mapping[str, Output]] = {"cache": Output(Dataset, schema="tokens")}
    metrics = ("tail_mass", "bytes_per_token", "tokens_per_second")
    paper = "2503.16870"
    params: CacheParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The data is the teacher's, and its vocabulary has that many tokens."""
        require_tokens_of(inputs["teacher"], inputs["data"], "data", "teacher")
        vocabulary = text_config(inputs["teacher"].config).get("vocab_size")
        if vocabulary is not None and self.params.top_k > vocabulary:
            raise UserError(
                f"top_k: {self.params.top_k}, the teacher has a vocabulary of {vocabulary} tokens",
                fix=f"set `top_k: {vocabulary}` or less",
            )

    def run(self, context: Context) -> None:
        """Run the teacher over the data, shard by shard."""
        from stages.distill.caching import write_cache

        context.metrics(**write_cache(self.params, context))
