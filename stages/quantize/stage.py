"""What all stages that quantise share: how weights are stored, what is written, and what is measured of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens, require_ids_below
from stages.evaluate.measured import DISTANCE
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from stages.training.checks import check_supported

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stages.quantize.packed import Packed, Scheme


class QuantizeParams(Parameters):
    """How weights are stored, and on how much text the result is measured."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits a weight. transformers loads them all (3 with compressed-tensors 0.18 or later), vLLM 4 and 8."""
    group_size: Annotated[int, Field(ge=8)] = 64
    """Input features that share one scale; it must divide the width of every layer."""
    symmetric: bool = True
    """Whether codes are centred on zero. Asymmetric codes store a zero point for each group as well."""
    skip: tuple[str, ...] = ("lm_head",)
    """Globs over module names to keep as they are. Embeddings and norms are never quantised."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of the `heldout` input to measure on, at most."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass."""

    def smoke(self) -> Self:
        """Groups that fit narrow layers, and a few windows."""
        return self.replaced(group_size=min(self.group_size, 16), heldout_windows=min(self.heldout_windows, 4))

    def scheme(self) -> Scheme:
        """How each weight is stored."""
        from stages.quantize.packed import Scheme

        return Scheme(self.bits, self.group_size, self.symmetric)


class Quantize(Stage):
    """Base of the stages that write a model's linears as integers: as compressed-tensors, or in a grafted model."""

    Params = QuantizeParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    requires: ClassVar[Mapping[str, str]] = {"compressed_tensors": "quantize"}
    metrics = ("bytes_before", "bytes_after", "bytes_ratio", "weight_error", "quantised_share", *DISTANCE)
    title: ClassVar[str]
    """Of the report."""
    always_grafted: ClassVar[bool] = False
    """Whether the result needs a base that grafts are known for."""
    params: QuantizeParams

    @abstractmethod
    def quantise(self, context: Context, model: PreTrainedModel) -> tuple[Packed, Mapping[str, Any]]:
        """The codes of `model`, whose other weights may change with them, and details for the report."""

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model is not quantised yet, grafts fit it where the result has some, and the tokens are its own."""
        model: Model = inputs["model"]
        if "quantization_config" in model.config:
            method = model.config["quantization_config"].get("quant_method", "an unknown method")
            raise UserError(
                f"the model is quantised already, by {method}",
                fix="give the model it was made from: quantising twice adds the errors",
            )
        done = [graft["name"] for graft in model.grafts if graft["name"] in ("quantised", "lowrank")]
        if done:
            raise UserError(
                f"the model is quantised already: it has the grafts {', '.join(done)}",
                fix="give the model it was made from: quantising twice adds the errors",
            )
        if self.always_grafted and not model.grafts:
            check_supported(model, "parts", fix="take a model of one of these, or `quantize.gptq`, which takes any")
        require_given_tokens(model, inputs, ("heldout", "calibration"))

    def run(self, context: Context) -> None:
        """Quantise, write, and measure what was written."""
        from grafts.loader import load_model, stored_dtype
        from stages.quantize.grafted import quantised_graft, require_graftable, save_quantised
        from stages.quantize.targets import is_grafted

        source, out, heldout_NT = context.model("model").path, context.output("model"), self._heldout(context)
        model = load_model(source, dtype=stored_dtype(source))
        if is_grafted(model) or self.always_grafted:
            require_graftable(model, quantised_graft(self.params.scheme(), self.params.skip))
        packed, details = self.quantise(context, model)
        context.metrics(**_weights(model, packed))
        save_quantised(model, packed, self.params.skip, out, tokenizer_from=source)
        del model
        context.metrics(**_sizes(source, out))
        if heldout_NT is not None:
            context.metrics(**self._distance(context, source, out, heldout_NT))
        told = {"layer_errors": packed.layer_errors, "kept": packed.kept, "computed_in": _computed_in(source)}
        details = {**details, **told, **self.params.identity()}
        write_report(context.output("report"), self.title, context.results, details)

    def _heldout(self, context: Context) -> torch.Tensor | None:
        from stages.training.windows import input_windows

        if context.inputs.get("heldout") is None:
            return None
        windows_NT = input_windows(context, "heldout", self.params.heldout_windows)
        require_known_ids(context, "heldout", windows_NT)
        return windows_NT

    def _distance(self, context: Context, source: Path, out: Path, windows_NT: torch.Tensor) -> dict[str, float]:
        from grafts.loader import load_model, stored_dtype
        from grafts.quantised.linear import hold_weights
        from stages.evaluate.distance import distance

        parent, child = (load_model(path, dtype=stored_dtype(source)) for path in (source, out))
        hold_weights(child)
        found = distance(parent, child, windows_NT, batch_size=self.params.batch_size, progress=context.progress)
        return found.metrics()


def require_known_ids(context: Context, name: str, windows_NT: torch.Tensor) -> None:
    """Raise UserError when windows of input `name` hold ids outside the model's vocabulary."""
    require_ids_below(int(windows_NT.max()), context.model("model").config, where=name)


def _computed_in(source: Path) -> str:
    from grafts.arithmetic import computing_dtype, dtype_name
    from grafts.loader import stored_dtype

    return dtype_name(computing_dtype(stored_dtype(source)))


def _sizes(source: Path, out: Path) -> dict[str, float]:
    before, after = (sum(shard.stat().st_size for shard in path.glob("*.safetensors")) for path in (source, out))
    return {"bytes_before": before, "bytes_after": after, "bytes_ratio": after / before}


def _weights(model: PreTrainedModel, packed: Packed) -> dict[str, float]:
    return {
        "weight_error": fmean(packed.layer_errors.values()),
        "quantised_share": packed.num_quantised / model.num_parameters(),
    }
