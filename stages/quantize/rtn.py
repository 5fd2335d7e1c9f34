"""`quantize.rtn`: store a model's linears as 4 or 8 bit integers, by rounding to nearest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_ids_below, require_tokens_of
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.quantize.packed import Packed


class RoundToNearestParams(Parameters):
    """How weights are stored, and on how much text the result is measured."""

    bits: Literal[4, 8] = 4
    """Bits a weight."""
    group_size: Annotated[int, Field(ge=8)] = 64
    """Input features that share one scale; it must divide the width of every layer."""
    symmetric: bool = True
    """Whether codes are centred on zero. Asymmetric codes store a zero point for each group as well."""
    skip: tuple[str, ...] = ("lm_head",)
    """Globs over module names to keep as they are. Embeddings and norms are never quantised."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of the `heldout` input to measure on, at most."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass of the measurement."""

    def smoke(self) -> Self:
        """Groups that fit narrow layers, and a few windows."""
        return self.replaced(group_size=min(self.group_size, 16), heldout_windows=min(self.heldout_windows, 4))


class QuantizeRoundToNearest(Stage):
    """Quantise the weights of every linear to 4 or 8 bits, by rounding to nearest, without data.

    Writes the `pack-quantized` format of compressed-tensors, which plain `transformers` and vLLM load; tied embeddings
    stay tied. With `heldout` text it reads the written model back and reports its distance to the parent. The affine
    scheme w = scale * (q - zero_point) is that of arXiv:1712.05877, with one scale a group of input features.
    """

    Params = RoundToNearestParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    requires: ClassVar[Mapping[str, str]] = {"compressed_tensors": "quantize"}
    metrics = (
        "bytes_before",
        "bytes_after",
        "bytes_ratio",
        "weight_error",
        "quantised_share",
        "kl_to_parent",
        "kl_to_parent_p99",
        "perplexity_ratio",
        "top1_agreement",
        "perplexity",
        "parent_perplexity",
    )
    paper = "1712.05877"
    params: RoundToNearestParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model is not quantised yet, and the heldout tokens are its own."""
        model: Model = inputs["model"]
        if "quantization_config" in model.config:
            method = model.config["quantization_config"].get("quant_method", "an unknown method")
            raise UserError(
                f"the model is quantised already, by {method}",
                fix="give the model it was made from: quantising twice adds the errors",
            )
        if inputs.get("heldout") is not None:
            require_tokens_of(model, inputs["heldout"], where="heldout")

    def run(self, context: Context) -> None:
        """Quantise, write, and measure what was written."""
        from grafts.loader import load_model, stored_dtype
        from stages.quantize.packed import Scheme, pack_model, save_packed

        source, out = context.model("model").path, context.output("model")
        parent = load_model(source, dtype=stored_dtype(source))
        scheme = Scheme(self.params.bits, self.params.group_size, self.params.symmetric)
        packed = pack_model(parent, scheme, self.params.skip, context.progress)
        save_packed(parent, packed, scheme, out, tokenizer_from=source)
        context.metrics(**_sizes(source, out), **_weights(parent, packed))
        if context.inputs.get("heldout") is not None:
            context.metrics(**self._distance(context, parent, out))
        details = {"layer_errors": packed.layer_errors, "kept": packed.kept, **self.params.identity()}
        write_report(context.output("report"), "Round-to-nearest quantisation", context.results, details)

    def _distance(self, context: Context, parent: PreTrainedModel, out: Path) -> dict[str, float]:
        from grafts.loader import load_model
        from stages.data.windows import TokenWindows
        from stages.evaluate.distance import distance

        windows = TokenWindows(context.dataset("heldout"), context.scratch).tensor(self.params.heldout_windows)
        require_ids_below(int(windows.max()), parent.config.to_dict(), where="heldout")
        child = load_model(out, dtype=parent.dtype)
        found = distance(parent, child, windows, batch_size=self.params.batch_size, progress=context.progress)
        return {
            "kl_to_parent": found.kl,
            "kl_to_parent_p99": found.kl_p99,
            "perplexity_ratio": found.perplexity_ratio,
            "top1_agreement": found.top1_agreement,
            "perplexity": found.child_perplexity,
            "parent_perplexity": found.parent_perplexity,
        }


def _sizes(source: Path, out: Path) -> dict[str, float]:
    before, after = (sum(shard.stat().st_size for shard in path.glob("*.safetensors")) for path in (source, out))
    return {"bytes_before": before, "bytes_after": after, "bytes_ratio": after / before}


def _weights(parent: PreTrainedModel, packed: Packed) -> dict[str, float]:
    return {
        "weight_error": fmean(packed.layer_errors.values()),
        "quantised_share": packed.num_quantised / parent.num_parameters(),
    }
