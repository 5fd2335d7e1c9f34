"""`transfer.convert`: put hybrid heads into a pretrained model, reusing its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens, text_config
from stages.evaluate.measured import DISTANCE
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from stages.transfer.heads import head_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grafts.hybrid.graft import HybridHeads

Heads = tuple[Annotated[int, Field(ge=0)], ...]
Rate = Annotated[float, Field(gt=0)]


class ConvertParams(Parameters):
    """Which heads stay, what the others become, and how the two kinds are built. The defaults are the paper's."""

    full_heads: tuple[Heads | None, ...] | None = None
    """For each layer, the query heads that stay softmax attention (null: the layer stays as it is). Without it, the
    input `selection` says which."""
    others: Literal["gated_deltanet", "sliding_window"] = "gated_deltanet"
    """What the other heads become: linear attention with a state, or, for comparison, attention to a window."""
    window: Annotated[int, Field(ge=2)] = 512
    """Tokens that the other heads see, themselves included, if windowed."""
    sinks: Annotated[int, Field(ge=0)] = 4
    """First tokens of the text that they see as well, if windowed: without any, a head that has nothing to read reads
    something (arXiv 2309.17453). None in layers that had a window before."""
    normalise: bool = True
    """Bring each head's output to root mean square 1 and scale it by a learnable scalar, which starts as the teacher's
    mean where `data` is given; off, the outputs stay as they are."""
    full_rope: bool = False
    """Rotate the queries and keys of the softmax heads by their position, as the teacher does."""
    full_length_scale: Annotated[float, Field(gt=1)] | None = 362.0
    """a of the factor log(t + a) / log a on the softmax heads' query at position t, in tokens; null: no factor."""
    full_output_gate: bool = True
    """Multiply the softmax heads' output by the sigmoid of a projection of the layer's input, which starts open."""
    linear_rope: bool = True
    """Rotate the queries and keys of the linear heads by their position."""
    linear_conv: Annotated[int, Field(ge=2, le=16)] | None = 4
    """Tokens that a short causal convolution before the linear heads spans; it starts as the identity. Null: none."""
    linear_negative_eigenvalues: bool = False
    """Let the linear heads' writing strength reach 2 (arXiv 2411.12537)."""
    linear_output_norm: bool = False
    """Normalise the linear heads' outputs inside their branch too."""
    linear_output_gate: bool = False
    """As `full_output_gate`, for the linear heads."""
    linear_forgetting: tuple[Rate, Rate] = (1e-3, 1e-1)
    """Decay of the linear heads' state for each token at the start, −log, from a layer's first linear head to its last:
    1e-3 halves a memory in 693 tokens, 1e-1 in 7."""
    calibration_windows: Annotated[int, Field(ge=1)] = 16
    """Windows of `data` on which the loudness of the teacher's heads is measured."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of `heldout` on which the distance to the teacher is measured."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass."""

    @model_validator(mode="after")
    def _possible(self) -> ConvertParams:
        for layer, heads in enumerate(self.full_heads or ()):
            if heads is not None and len(set(heads)) < len(heads):
                raise ValueError(f"full_heads: layer {layer} names a head twice: {list(heads)}; name each once")
        if self.linear_forgetting[0] > self.linear_forgetting[1]:
            raise ValueError(f"linear_forgetting: {list(self.linear_forgetting)} falls; give the slowest decay first")
        return self

    def smoke(self) -> Self:
        """A few windows; heads as the selection says, since those of the file belong to a larger model."""
        return self.replaced(full_heads=None, calibration_windows=2, heldout_windows=2)


class TransferConvert(Stage):
    """Split the heads of each attention layer into softmax attention and linear attention (or a sliding window).

    The conversion of HydraHead (arXiv 2606.20097): both kinds read the layer's input side by side through projections
    of their own, copied from the teacher's, and are fused head by head at equal loudness. Linear heads are Gated
    DeltaNet (arXiv 2412.06464). Everything else is the teacher's. The result loads with plain `transformers` after
    `import grafts`; it needs `transfer.align` and `transfer.distill` to become good again.
    """

    Params = ConvertParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "selection": Input(Report, optional=True),
        "data": Input(Dataset, schema="tokens", optional=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    isolated = True
    metrics = (
        "full_heads",
        "full_share",
        "kv_groups_kept",
        "cache_bytes_ratio",
        "parameters",
        *DISTANCE,
    )
    paper = "2606.20097"
    params: ConvertParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Somebody says which heads stay, they are the model's, and the model is neither converted nor quantised."""
        model: Model = inputs["model"]
        _check_model(model)
        if (self.params.full_heads is None) == (inputs.get("selection") is None):
            told = "neither" if self.params.full_heads is None else "both"
            raise UserError(
                f"{told} of `full_heads` and the input `selection` says which heads stay",
                fix="give one of them; `transfer.select_heads` makes a selection",
            )
        told_by = "selection" if self.params.full_heads is None else "full_heads"
        _check_heads(self._full_heads(inputs.get("selection")), model, told_by)
        require_given_tokens(model, inputs)

    def run(self, context: Context) -> None:
        """Convert, save, measure and report."""
        from grafts.loader import save_model

        graft = self._graft(self._full_heads(context.inputs.get("selection")))
        hybrid = self._converted(context, graft)
        save_model(hybrid, context.output("model"), tokenizer_from=context.model("model").path)
        figures = _sizes(hybrid, graft) | self._distance(context, hybrid)
        context.metrics(**figures)
        details = {"full_heads": graft.full_heads, "graft": graft.to_dict(), "parameters": self.params.identity()}
        write_report(context.output("report"), "Conversion to hybrid heads", figures, details)

    def _converted(self, context: Context, graft: HybridHeads) -> PreTrainedModel:
        """The model with its heads split, calibrated where there is text, on the device that measures."""
        import grafts
        from grafts.loader import load_model, stored_dtype
        from stages.evaluate.loading import DEVICE
        from stages.training.windows import input_windows

        source, calibration = context.model("model").path, ()
        model = load_model(source, dtype=stored_dtype(source)).to(DEVICE)
        if context.inputs.get("data") is not None:
            windows_NT = input_windows(context, "data", self.params.calibration_windows)
            calibration = windows_NT.split(self.params.batch_size)
        try:
            return grafts.apply(model, [graft], calibration=calibration)
        except ValueError as error:
            raise UserError(str(error), fix="see docs/methods/transfer.md for what can be converted") from error

    def _full_heads(self, selection: Report | None) -> Sequence[Sequence[int] | None]:
        if self.params.full_heads is not None:
            return self.params.full_heads
        assert selection is not None, "`check` has asked for one of the two"
        fix = "give the report of a `transfer.select_heads`"
        return selection.detail("full_heads", "selects no heads", where="selection", fix=fix)

    def _graft(self, full_heads: Sequence[Sequence[int] | None]) -> HybridHeads:
        try:
            return self._hybrid_heads(full_heads)
        except ValidationError as error:
            reasons = "; ".join(
                f"{'.'.join(map(str, reason['loc']))}: {reason['msg'].removeprefix('Value error, ')}"
                for reason in error.errors()
            )
            raise UserError(reasons, where="selection", fix="make the selection again") from None

    def _hybrid_heads(self, full_heads: Sequence[Sequence[int] | None]) -> HybridHeads:
        from grafts.hybrid.graft import HybridHeads
        from grafts.hybrid.settings import DeltaNet, Softmax

        params = self.params
        return HybridHeads(
            full_heads=tuple(heads if heads is None else tuple(heads) for heads in full_heads),
            others=params.others,
            window=params.window,
            sinks=params.sinks,
            normalise=params.normalise,
            softmax=Softmax(
                rope=params.full_rope,
                length_scale=params.full_length_scale,
                output_gate=params.full_output_gate,
            ),
            deltanet=DeltaNet(
                rope=params.linear_rope,
                conv=params.linear_conv,
                negative_eigenvalues=params.linear_negative_eigenvalues,
                output_norm=params.linear_output_norm,
                output_gate=params.linear_output_gate,
                forgetting=params.linear_forgetting,
            ),
        )

    def _distance(self, context: Context, hybrid: PreTrainedModel) -> dict[str, float]:
        from grafts.loader import load_model
        from stages.training.heldout import heldout_distance

        teacher = partial(load_model, context.model("model").path, dtype=hybrid.dtype)
        how = {"limit": self.params.heldout_windows, "batch_size": self.params.batch_size}
        return heldout_distance(context, teacher, hybrid, **how)


def _check_model(model: Model) -> None:
    head_shape(model)
    if "quantization_config" in model.config:
        raise UserError("the model is quantised: its projections cannot be split by head", fix="convert first")


def _check_heads(full_heads: Sequence[Sequence[int] | None], model: Model, where: str) -> None:
    config = text_config(model.config)
    num_layers, num_heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if len(full_heads) != num_layers:
        message = f"the heads of {len(full_heads)} layers are selected, the model has {num_layers}"
    elif (highest := max((head for heads in full_heads for head in heads or ()), default=-1)) >= num_heads:
        message = f"head {highest} is selected, the model has {num_heads} in a layer, counted from 0"
    elif all(heads is None for heads in full_heads):
        message = "every layer is left as it is: there is nothing to convert"
    else:
        return
    own = f"give a list of heads from 0 to {num_heads - 1}, or null, for each of {num_layers} layers; not null for all"
    raise UserError(message, where=where, fix=own if where == "full_heads" else "select with scores of this very model")


def _sizes(hybrid: PreTrainedModel, graft: HybridHeads) -> dict[str, float]:
    """Heads and key-value groups that still read everything, and the cache at full context beside the teacher's."""
    from grafts.bases import decoder_layers
    from grafts.hybrid.branch import Teacher
    from grafts.hybrid.graft import mixers

    config, found = hybrid.config, mixers(hybrid)
    length, dtype, num_heads = config.max_position_embeddings, hybrid.dtype, config.num_attention_heads
    layers = enumerate(decoder_layers(hybrid))
    untouched = [Teacher.of(layer.self_attn) for index, layer in layers if index not in found]
    kept = sum(teacher.cache_bytes(length, dtype) for teacher in untouched)
    before = kept + sum(mixer.teacher.cache_bytes(length, dtype) for mixer in found.values())
    after = kept + sum(mixer.cache_bytes(1, length, dtype) for mixer in found.values())
    full = sum(num_heads if heads is None else len(heads) for heads in graft.full_heads)
    groups = sum(len(mixer.full.groups) for mixer in found.values() if mixer.full is not None)
    return {
        "full_heads": full,
        "full_share": full / (config.num_hidden_layers * num_heads),
        "kv_groups_kept": groups + sum(teacher.num_groups for teacher in untouched),
        "cache_bytes_ratio": after / before,
        "parameters": sum(parameter.numel() for parameter in hybrid.parameters()),
    }
