"""Quantising with calibration data: layer by layer, each with the moments of its inputs.

One pass moves the hidden states of all windows through the decoder. At each layer the moments of every distinct input
are summed, a method turns them and the weights into codes, and all of it is dropped again before the next layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.lowrank.covariance import output_change
from grafts.rtn import Quantised, dequantise
from stages.errors import UserError
from stages.quantize.layers import Layer, calibrated_layer, pooled_layers
from stages.quantize.packed import Packed, Scheme
from stages.quantize.stream import LayerStream
from stages.quantize.targets import Targets
from stages.stage import Progress


class Solved(NamedTuple):
    """Codes for the weight of one linear, and what they are to be judged by."""

    weight: Tensor
    """[O, I] that was rounded; not the pretrained one where a method moved scales between layers"""
    quantised: Quantised
    covariance: Tensor
    """[I, I] of the input that such a weight reads"""
    power: float
    """||W X||^2 of such a weight and input, its mean over all calibration tokens"""
    correction: Tensor | None = None
    """[O, I] that is added to what the codes stand for"""

    @property
    def restored(self) -> Tensor:
        """[O, I] that the linear computes with; float32 where a correction is added."""
        weight_OI = dequantise(self.quantised)
        return weight_OI if self.correction is None else weight_OI + self.correction


class Method(ABC):
    """How the weights of one decoder layer become codes, given its inputs' moments."""

    @abstractmethod
    def solve(self, layer: Layer) -> Mapping[str, Solved]:
        """Codes for every chosen linear. It may change the layer's other weights, never what the layer computes."""

    @property
    def rounds(self) -> bool:
        """Whether its codes are those of rounding to nearest."""
        return False

    def details(self) -> Mapping[str, Any]:
        """What the report should tell of the layers solved so far."""
        return {}


@dataclass
class Calibrated:
    """Packed weights, and by how much each linear's output moves on the calibration tokens."""

    packed: Packed
    output_errors: dict[str, float] = field(default_factory=dict)
    """||(W - W') X|| / ||W X|| by layer."""
    uncorrected_errors: dict[str, float] = field(default_factory=dict)
    """The same without its correction."""
    rounded_errors: dict[str, float] = field(default_factory=dict)
    """The same if it were rounded to nearest."""
    groups: list[tuple[str, ...]] = field(default_factory=list)
    """Names of the linears that read one input."""
    unseen: list[str] = field(default_factory=list)
    """Linears that no calibration token reached."""


def quantise_layers(
    model: PreTrainedModel,
    windows_NT: Tensor,
    scheme: Scheme,
    chosen: Targets,
    method: Method,
    *,
    sequential: bool,
    batch_size: int,
    progress: Progress,
) -> Calibrated:
    """Quantise `chosen` by `method`; afterwards `model` computes with the quantised weights.

    `sequential`: a layer is calibrated on what the quantised layers before it give, at the cost of a second pass; not
    so where layers share weights, which are calibrated on the inputs of all of them, at the cost of holding the moments
    of all. Raises UserError when the windows are too few or a linear's input is not finite.
    """
    _require_tokens(windows_NT, chosen)
    stream = LayerStream(model, windows_NT, batch_size)
    _require_inside(stream.layers, chosen)
    found = Calibrated(Packed(scheme, chosen.kept))
    if chosen.tied:
        for layer in pooled_layers(stream, chosen, found.packed.twins, progress):
            _quantise_layer(layer, scheme, method, found)
        return found
    for done, (name, module) in enumerate(stream.layers.items(), start=1):
        layer = calibrated_layer(stream, name, module, chosen, keep_outputs=not sequential)
        _quantise_layer(layer, scheme, method, found)
        if sequential:
            for number, hidden_BTH in stream.run(name):
                stream.replace(number, hidden_BTH)
        progress(done, len(stream.layers), "layers")
    return found


def _quantise_layer(layer: Layer, scheme: Scheme, method: Method, found: Calibrated) -> None:
    for group in layer.groups:
        found.groups.append(group.readers)
        found.unseen.extend(group.chosen if group.num_tokens == 0 else ())
        for name in () if method.rounds else group.chosen:
            weight_OI = layer.linears[name].weight.data
            rounded = Solved(weight_OI, scheme.round(weight_OI), group.covariance, layer.powers[name])
            (found.rounded_errors[name],) = output_errors(rounded)
    for name, solved in method.solve(layer).items():
        found.packed.add(name, solved.weight, solved.quantised)
        errors = output_errors(solved)
        found.uncorrected_errors[name], found.output_errors[name] = errors[0], errors[-1]
        if method.rounds:
            found.rounded_errors[name] = errors[0]
        layer.linears[name].weight.data = solved.restored.to(solved.weight.dtype)


def output_errors(solved: Solved) -> list[float]:
    """||(W - W') X|| / ||W X|| for W' without the correction and, where there is one, with it; 0 where W X is zero."""
    made = [dequantise(solved.quantised), *([] if solved.correction is None else [solved.restored])]
    if not solved.power > 0:
        return [0.0] * len(made)
    weight_OI, covariance_II = solved.weight.float(), solved.covariance.float()
    moved = [output_change(weight_OI - each_OI.float(), covariance_II).item() for each_OI in made]
    return [math.sqrt(max(0.0, each) / solved.power) for each in moved]


def _require_tokens(windows_NT: Tensor, chosen: Targets) -> None:
    name, widest = max(chosen.layers.items(), key=lambda item: item[1].in_features)
    if windows_NT.numel() < widest.in_features:
        num_windows = -(-widest.in_features // windows_NT.shape[1])
        raise UserError(
            f"{len(windows_NT)} windows of {windows_NT.shape[1]} tokens are fewer tokens than {name} has inputs: "
            f"{windows_NT.numel()} < {widest.in_features}",
            where="calibration",
            fix=f"set calibration_windows to {num_windows} or more, and give at least as many; ten times that is usual",
        )


def _require_inside(layers: Mapping[str, nn.Module], chosen: Targets) -> None:
    outside = [name for name in chosen.layers if not name.startswith(tuple(f"{layer}." for layer in layers))]
    if outside:
        raise UserError(
            f"{', '.join(outside)}: outside the decoder layers, where no calibration reaches",
            fix=f"add it to skip: {outside}, or quantise it with quantize.rtn",
        )
