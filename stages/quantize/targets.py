"""Which linears of a model are quantised: chosen by name, and refused where their structure has no place for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from grafts import GraftedForCausalLM
from grafts.quantised.graft import matches, unquantisable
from stages.errors import UserError


@dataclass(frozen=True)
class Targets:
    """The linears of a model that are quantised, by name, and those that stay."""

    layers: dict[str, nn.Linear]
    kept: list[str]
    tied: dict[str, str] = field(default_factory=dict)
    """Linears that have their weight in common with one of `layers` → that one's name."""


def targets(model: PreTrainedModel, group_size: int, skip: Sequence[str]) -> Targets:
    """The linears of `model` to quantise: all but those whose name matches a glob in `skip`.

    Of linears that share a weight the first stands for all. Raises UserError when a weight is not finite, is tied to
    what is not quantised, has a width no group divides, or belongs to a structure that the format has no place for.
    """
    chosen, kept = choose_layers(model, skip)
    owners: dict[int, str] = {}
    tied = {name: owner for name, each in chosen.items() if (owner := owners.setdefault(id(each.weight), name)) != name}
    layers = {name: layer for name, layer in chosen.items() if name not in tied}
    for name, layer in layers.items():
        _require_packable(name, layer, group_size)
    return Targets(layers, kept, tied)


def choose_layers(model: nn.Module, skip: Sequence[str]) -> tuple[dict[str, nn.Linear], list[str]]:
    """The linears to quantise by name, and the names of those that `skip` keeps."""
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    _require_matches(model, skip)
    _require_only_linears(model, skip)
    kept = [name for name in linears if matches(name, skip)]
    chosen = {name: layer for name, layer in linears.items() if name not in set(kept)}
    if not chosen:
        raise UserError(f"no linear layer is left to quantise of {len(linears)}", fix=f"shorten skip: {list(skip)}")
    _require_untied(model, chosen)
    return chosen, kept


def is_grafted(model: nn.Module) -> bool:
    """Whether only this project can build the model, so that formats of others gain nothing."""
    return isinstance(model, GraftedForCausalLM)


def _require_matches(model: nn.Module, skip: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    for pattern in skip:
        if not any(matches(name, [pattern]) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            fix = f"names like it: {', '.join(near)}" if near else f"take {pattern!r} out of skip"
            raise UserError(f"skip: {pattern!r} matches no part of the model", fix=fix)


def _require_only_linears(model: nn.Module, skip: Sequence[str]) -> None:
    for name, parameter, module in unquantisable(model, skip):
        what = "experts fused into one tensor" if parameter.ndim == 3 else "a weight outside nn.Linear"
        raise UserError(
            f"{name} of shape {tuple(parameter.shape)} is {what} ({type(module).__name__}), "
            "which cannot be quantised yet",
            fix=f"to keep it in full precision on purpose, add it to skip: ['{name}'] (globs are allowed)",
        )


def _require_untied(model: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        pair = {first.removesuffix(".weight"), name.removesuffix(".weight")}
        for tied in {first, name} if first != name and not (pair <= chosen.keys() and is_grafted(model)) else ():
            if tied.removesuffix(".weight") in chosen:
                raise UserError(
                    f"{tied} is one tensor with {first if tied == name else name}: packing it would untie them",
                    fix=f"add {tied.removesuffix('.weight')!r} to skip",
                )


def _require_packable(name: str, layer: nn.Linear, group_size: int) -> None:
    if layer.in_features % group_size:
        divisors = [size for size in range(8, layer.in_features + 1, 8) if layer.in_features % size == 0]
        raise UserError(
            f"group_size {group_size} does not divide the {layer.in_features} input features of {name}",
            fix=f"choose group_size from {divisors}, or add {name!r} to skip" if divisors else f"add {name!r} to skip",
        )
    if not torch.isfinite(layer.weight).all():
        bad = int((~torch.isfinite(layer.weight)).sum())
        raise UserError(
            f"{name}.weight holds {bad} values that are not finite, of {layer.weight.numel()}",
            fix="the model is damaged: make it again, or look at the training that made it",
        )
