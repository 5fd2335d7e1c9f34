"""Quantising with calibration data: layer by layer, each with the moments of its inputs.

One pass moves the hidden states of all windows through the decoder. At each layer the moments of every distinct input
are summed, a method turns them and the weights into codes, and all of it is dropped again before the next layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.lowrank.covariance import Moments, output_change
from grafts.rtn import Quantised, dequantise
from stages.errors import UserError
from stages.quantize.flow import input_groups, watching_inputs
from stages.quantize.packed import Packed, Progress, Scheme, Targets
from stages.quantize.stream import LayerStream, Probe


@dataclass(frozen=True)
class Group:
    """The linears of one layer that read one input, and the moments of that input over all calibration tokens."""

    readers: tuple[str, ...]
    chosen: tuple[str, ...]
    """Those of the readers that are quantised."""
    covariance: Tensor
    """Mean of x x^T, float64 [I, I]; zero when no token came here."""
    magnitude: Tensor
    """Mean of |x|, float64 [I]"""
    num_tokens: int


@dataclass(frozen=True)
class Layer:
    """One decoder layer, as a method sees it."""

    name: str
    module: nn.Module
    linears: Mapping[str, nn.Linear]
    """All of its linears, by their names in the model."""
    groups: list[Group]
    probe: Probe


class Solved(NamedTuple):
    """Codes for the weight of one linear, and what they are to be judged by."""

    weight: Tensor
    """[O, I] that was rounded; not the pretrained one where a method moved scales between layers"""
    quantised: Quantised
    covariance: Tensor
    """[I, I] of the input that such a weight reads"""


class Method(ABC):
    """How the weights of one decoder layer become codes, given its inputs' moments."""

    @abstractmethod
    def solve(self, layer: Layer) -> Mapping[str, Solved]:
        """Codes for every chosen linear. It may change the layer's other weights, never what the layer computes."""

    def details(self) -> Mapping[str, Any]:
        """What the report should tell of the layers solved so far."""
        return {}


@dataclass
class Calibrated:
    """Packed weights, and by how much each linear's output moves on the calibration tokens."""

    packed: Packed
    output_errors: dict[str, float] = field(default_factory=dict)
    """||(W - W') X|| / ||W X|| by layer."""
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

    `sequential`: a layer is calibrated on what the quantised layers before it give, at the cost of a second pass.
    Raises UserError when the windows are too few or a linear's input is not finite.
    """
    _require_tokens(windows_NT, chosen)
    stream = LayerStream(model, windows_NT, batch_size)
    _require_inside(stream.layers, chosen)
    found = Calibrated(Packed(scheme, chosen.kept))
    for done, (name, module) in enumerate(stream.layers.items(), start=1):
        layer = _calibrated(stream, name, module, chosen, keep_outputs=not sequential)
        _quantise_layer(layer, scheme, method, found)
        if sequential:
            for number, hidden_BTH in stream.run(name):
                stream.replace(number, hidden_BTH)
        progress(done, len(stream.layers), "layers")
    return found


def _calibrated(stream: LayerStream, name: str, module: nn.Module, chosen: Targets, *, keep_outputs: bool) -> Layer:
    inside = {f"{name}.{part}": each for part, each in module.named_modules() if isinstance(each, nn.Linear)}
    probe = stream.probes[name]
    readers = [group for group in input_groups(inside, lambda: probe.run(module)) if chosen.layers.keys() & set(group)]
    moments = {group[0]: Moments(inside[group[0]].in_features, inside[group[0]].weight.device) for group in readers}

    def see(reader: str, x: Tensor) -> None:
        moments[reader].add(x)
        if not moments[reader].is_finite:
            _refuse(reader, x)

    with watching_inputs({reader: inside[reader] for reader in moments}, see):
        for number, hidden_BTH in stream.run(name):
            if keep_outputs:
                stream.replace(number, hidden_BTH)
    groups = [_group(group, chosen, moments.pop(group[0])) for group in readers]
    return Layer(name, module, inside, groups, probe)


def _group(readers: tuple[str, ...], chosen: Targets, moments: Moments) -> Group:
    picked = tuple(name for name in readers if name in chosen.layers)
    if moments.num_tokens == 0:
        nothing_I = torch.zeros(moments.width, dtype=torch.float64, device=moments.device)
        return Group(readers, picked, nothing_I.diag(), nothing_I, 0)
    return Group(readers, picked, moments.covariance(), moments.mean_magnitude(), moments.num_tokens)


def _quantise_layer(layer: Layer, scheme: Scheme, method: Method, found: Calibrated) -> None:
    for group in layer.groups:
        found.groups.append(group.readers)
        found.unseen.extend(group.chosen if group.num_tokens == 0 else ())
        for name in group.chosen:
            weight_OI = layer.linears[name].weight.data
            found.rounded_errors[name] = output_error(weight_OI, scheme.round(weight_OI), group.covariance)
    for name, solved in method.solve(layer).items():
        found.packed.add(name, solved.weight, solved.quantised)
        found.output_errors[name] = output_error(*solved)
        layer.linears[name].weight.data = dequantise(solved.quantised)


def output_error(weight_OI: Tensor, quantised: Quantised, covariance_II: Tensor) -> float:
    """||(W - W') X|| / ||W X|| for inputs X of that second moment; 0 where W X is zero."""
    covariance_II = covariance_II.float()
    moved = output_change(weight_OI.float() - dequantise(quantised).float(), covariance_II)
    whole = output_change(weight_OI.float(), covariance_II)
    return (moved.clamp(min=0) / whole).sqrt().item() if whole > 0 else 0.0


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


def _refuse(name: str, x: Tensor) -> None:
    bad = int((~torch.isfinite(x)).sum())
    raise UserError(
        f"the input of {name} holds {bad} values that are not finite, of {x.numel()}",
        where="calibration",
        fix="the model is damaged, or overflows in its dtype: store it as bfloat16 (dtype of source.model)",
    )
