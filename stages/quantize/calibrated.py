"""What the stages that quantise with calibration data share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset
from stages.quantize.stage import Quantize, QuantizeParams, require_known_ids
from stages.stage import Context, Input

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from stages.quantize.calibrate import Calibrated, Method
    from stages.quantize.packed import Packed
    from stages.quantize.targets import Targets


class CalibratedParams(QuantizeParams):
    """How weights are stored, on how much text they are calibrated and measured."""

    calibration_windows: Annotated[int, Field(ge=1)] = 128
    """Windows of the `calibration` input to use, at most, drawn by the seed. There must be as many tokens as the widest
    layer has inputs; below ten times as many the codes fit those tokens rather than the text."""
    sequential: bool = False
    """Calibrate each layer on what the quantised layers before it give, at the cost of a second pass."""

    def smoke(self) -> Self:
        """Groups that fit narrow layers, and a few windows."""
        return super().smoke().replaced(calibration_windows=min(self.calibration_windows, 8))


class CalibratedQuantize(Quantize):
    """Base of the stages whose codes depend on the inputs that a weight sees on calibration text."""

    Params = CalibratedParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Quantize.inputs["model"],
        "calibration": Input(Dataset, schema="tokens"),
        "heldout": Quantize.inputs["heldout"],
    }
    metrics = (*Quantize.metrics, "output_error", "output_error_rounded", "calibration_tokens")
    params: CalibratedParams

    @abstractmethod
    def method(self, model: PreTrainedModel) -> Method:
        """How the weights of one decoder layer become codes."""

    def quantise(self, context: Context, model: PreTrainedModel) -> tuple[Packed, Mapping[str, Any]]:
        """Calibrate and quantise one layer after another."""
        from stages.quantize.targets import targets

        chosen, windows_NT = targets(model, self.params.group_size, self.params.skip), self.windows(context)
        method = self.method(model)
        found = self.calibrate(context, model, method, chosen, windows_NT)
        return found.packed, {**method.details(), **calibration_details(found)}

    def calibrate(
        self, context: Context, model: PreTrainedModel, method: Method, chosen: Targets, windows_NT: torch.Tensor
    ) -> Calibrated:
        """Quantise `chosen` by `method`, with the metrics and messages that all calibrated stages have."""
        from stages.quantize.calibrate import quantise_layers

        found = quantise_layers(
            model,
            windows_NT,
            self.params.scheme(),
            chosen,
            method,
            sequential=self.params.sequential,
            batch_size=self.params.batch_size,
            progress=context.progress,
        )
        context.metrics(
            output_error=fmean(found.output_errors.values()),
            output_error_rounded=fmean(found.rounded_errors.values()),
            calibration_tokens=windows_NT.numel(),
        )
        if found.unseen:
            context.say(f"no calibration token reached {len(found.unseen)} linears: rounded to nearest")
        if chosen.tied and self.params.sequential:
            context.say("layers share weights: all of them are calibrated on what the model gives before quantising")
        return found

    def windows(self, context: Context) -> torch.Tensor:
        """The calibration windows [N, T], drawn by the seed."""
        import torch

        from stages.data.windows import TokenWindows

        windows = TokenWindows(context.dataset("calibration"), context.scratch / "windows")
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(context.seed)).tolist()
        drawn = sorted(order[: self.params.calibration_windows])
        if len(drawn) < self.params.calibration_windows:
            context.say(f"calibration has {len(drawn)} windows, fewer than {self.params.calibration_windows}: all used")
        windows_NT = windows.stack(drawn)
        require_known_ids(context, "calibration", windows_NT)
        return windows_NT


def calibration_details(found: Calibrated) -> dict[str, Any]:
    """What the report tells of the calibration."""
    return {
        "output_errors": found.output_errors,
        "output_errors_rounded": found.rounded_errors,
        "inputs_shared_by": [list(group) for group in found.groups],
        "unseen": found.unseen,
    }
