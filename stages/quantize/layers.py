"""Decoder layers with the moments of what their linears read: one at a time, or pooled where layers share weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grafts.lowrank.covariance import Moments, output_change
from stages.errors import UserError
from stages.quantize.flow import input_groups, watching_inputs
from stages.quantize.stream import LayerStream, Probe
from stages.quantize.targets import Targets
from stages.stage import Progress


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
    powers: Mapping[str, float]
    """||W X||^2 of each linear that is quantised, before a method changes anything; see `output_power`."""


def pooled_layers(
    stream: LayerStream, chosen: Targets, twins: dict[tuple[str, ...], tuple[str, ...]], progress: Progress
) -> list[Layer]:
    """Every layer with groups that own their weights, whose moments count the inputs of all that share them.

    `twins` is filled with the groups that do not own theirs. Raises UserError when some of a group do and some do not.
    """
    owned: dict[tuple[str, ...], Moments] = {}
    parts: list[tuple[str, nn.Module, dict[tuple[str, ...], tuple[str, ...]]]] = []
    for done, (name, module) in enumerate(stream.layers.items(), start=1):
        kept: dict[tuple[str, ...], tuple[str, ...]] = {}
        for readers, moments in _moments(stream, name, module, chosen, keep_outputs=True).items():
            picked = _picked(readers, chosen)
            owners = tuple(chosen.tied.get(each, each) for each in picked)
            _require_one_owner(picked, owners, owned)
            if owners == picked:
                owned[picked], kept[readers] = moments, picked
            else:
                owned[owners].merge(moments)
                twins[picked] = owners
        parts.append((name, module, kept))
        progress(done, len(stream.layers), "layers")
    return [
        _layer(name, module, [_group(*item, owned[item[1]]) for item in kept.items()], probe)
        for (name, module, kept), probe in zip(parts, stream.probes.values(), strict=True)
    ]


def calibrated_layer(
    stream: LayerStream, name: str, module: nn.Module, chosen: Targets, *, keep_outputs: bool
) -> Layer:
    """Layer `name` with the moments of its inputs; with `keep_outputs` the stream goes on behind it."""
    moments = _moments(stream, name, module, chosen, keep_outputs=keep_outputs)
    groups = [_group(readers, _picked(readers, chosen), moments.pop(readers)) for readers in list(moments)]
    return _layer(name, module, groups, stream.probes[name])


def output_power(weight_OI: Tensor, covariance_II: Tensor) -> float:
    """||W X||^2, its mean over the tokens of the covariance, in float32."""
    return output_change(weight_OI.float(), covariance_II.float()).item()


def _layer(name: str, module: nn.Module, groups: list[Group], probe: Probe) -> Layer:
    linears = _linears(name, module)
    powers: dict[str, float] = {}
    for group in groups:
        for each in group.chosen:
            powers[each] = output_power(linears[each].weight.data, group.covariance)
    return Layer(name, module, linears, groups, probe, powers)


def _moments(
    stream: LayerStream, name: str, module: nn.Module, chosen: Targets, *, keep_outputs: bool
) -> dict[tuple[str, ...], Moments]:
    """Of each input of the layer that a chosen linear reads, by all that read it."""
    inside, probe = _linears(name, module), stream.probes[name]
    readers = [group for group in input_groups(inside, lambda: probe.run(module)) if _picked(group, chosen)]
    moments = {group[0]: Moments(inside[group[0]].in_features, inside[group[0]].weight.device) for group in readers}

    def see(reader: str, x: Tensor) -> None:
        moments[reader].add(x)
        if not moments[reader].is_finite:
            _refuse(reader, x)

    with watching_inputs({reader: inside[reader] for reader in moments}, see):
        for number, hidden_BTH in stream.run(name):
            if keep_outputs:
                stream.replace(number, hidden_BTH)
    return {group: moments[group[0]] for group in readers}


def _linears(name: str, module: nn.Module) -> dict[str, nn.Linear]:
    return {f"{name}.{part}": each for part, each in module.named_modules() if isinstance(each, nn.Linear)}


def _picked(readers: tuple[str, ...], chosen: Targets) -> tuple[str, ...]:
    return tuple(name for name in readers if name in chosen.layers or name in chosen.tied)


def _group(readers: tuple[str, ...], picked: tuple[str, ...], moments: Moments) -> Group:
    if moments.num_tokens == 0:
        nothing_I = torch.zeros(moments.width, dtype=torch.float64, device=moments.device)
        return Group(readers, picked, nothing_I.diag(), nothing_I, 0)
    return Group(readers, picked, moments.covariance(), moments.mean_magnitude(), moments.num_tokens)


def _require_one_owner(picked: tuple[str, ...], owners: tuple[str, ...], known: Mapping[tuple[str, ...], Any]) -> None:
    if owners != picked and owners not in known:
        raise UserError(
            f"{', '.join(picked)} read one input, but share weights with {', '.join(owners)}, which do not",
            fix="quantise before layers are tied, or add these linears to skip",
        )


def _refuse(name: str, x: Tensor) -> None:
    bad = int((~torch.isfinite(x)).sum())
    raise UserError(
        f"the input of {name} holds {bad} values that are not finite, of {x.numel()}",
        where="calibration",
        fix="the model is damaged, or overflows in its dtype: store it as bfloat16 (dtype of source.model)",
    )
