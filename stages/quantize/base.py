"""The choice of a base quantiser, for stages that improve on one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.quantize.calibrated import CalibratedParams
from stages.quantize.gptq import Order

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.quantize.calibrate import Method
    from stages.quantize.packed import Scheme


class BaseParams(CalibratedParams):
    """How weights are stored and their codes found, on how much text they are calibrated and measured."""

    symmetric: bool = False
    """Whether codes are centred on zero. Asymmetric codes store a zero point for each group as well."""
    base: Literal["rtn", "gptq", "awq"] = "rtn"
    """How codes are found; its options are those of `quantize.gptq` and `quantize.awq`."""
    order: Order = "activation"
    """Of gptq: the order in which weights are rounded."""
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Of gptq: share of the mean variance that is added to each input's."""
    exponents: Annotated[int, Field(ge=1, le=100)] = 20
    """Of awq: how many exponents of the inputs' magnitudes are tried."""
    sequential: bool = False
    """Calibrate each layer on what the quantised layers before it give, at the cost of a second pass. When it is not
    said, the base decides, as its own stage does: true for gptq."""

    @model_validator(mode="after")
    def _calibrated_as_the_base_is(self) -> Self:
        if "sequential" not in self.model_fields_set:
            self.__dict__["sequential"] = self.base == "gptq"
        return self


def base_method(params: BaseParams, model: PreTrainedModel, scheme: Scheme) -> Method:
    """The method that `params` name, for codes stored as `scheme`."""
    from stages.quantize.solvers import Awq, Gptq, RoundToNearest

    match params.base:
        case "rtn":
            return RoundToNearest(scheme)
        case "gptq":
            return Gptq(scheme, params.order, params.damping)
        case "awq":
            return Awq(model, scheme, params.exponents)
