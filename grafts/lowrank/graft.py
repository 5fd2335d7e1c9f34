"""The graft `lowrank`: low-rank corrections beside quantised linears, with one right factor for each group of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

import torch
from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from grafts.graft import Graft, Place, Sources
from grafts.lowrank.module import Correction, corrections
from grafts.quantised.graft import quantised_linears
from grafts.quantised.linear import PARTS, QuantisedLinear


class Group(BaseModel):
    """Quantised linears that read the same input and share the factor B of their corrections."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    members: Annotated[tuple[str, ...], MinLen(1)]
    """Their names in the model."""
    rank: Annotated[int, Ge(1)]
    """Rows of B."""


class LowRank(Graft):
    """y_i = W'_i x + A_i (B x) for the linears of each group (arXiv 2603.25385); groups of one have a B each."""

    name: ClassVar[str] = "lowrank"
    place: ClassVar[Place] = "adapters"

    groups: tuple[Group, ...]
    """What is corrected; no linear stands in two of them."""

    def check(self, base: PretrainedConfig, earlier: Sequence[Graft]) -> None:  # noqa: ARG002
        """ValueError unless linears are quantised, none is named twice, and none is corrected already."""
        names = [graft.name for graft in earlier]
        if self.groups and "quantised" not in names:
            raise ValueError("'lowrank' corrects linears of the graft 'quantised', which the model does not have")
        if "lowrank" in names:
            raise ValueError("'lowrank' cannot follow 'lowrank': start again from the model before that correction")
        counts = Counter(member for group in self.groups for member in group.members)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"'lowrank' names {', '.join(twice)} twice")

    def build(self, model: PreTrainedModel) -> None:
        """Put corrections of zero beside the linears; where linears share codes, they share their correction."""
        linears = quantised_linears(model)
        for group in self.groups:
            unknown = [name for name in group.members if name not in linears]
            if unknown:
                raise ValueError(f"'lowrank' names {', '.join(unknown)}: no quantised linears of the model")
            _attach(group, [linears[name] for name in group.members])
        _share_factors(model, self.groups)

    def convert(self, model: PreTrainedModel, sources: Sources) -> None:  # noqa: ARG002
        """The same: a correction starts as zero; `fill` puts factors in."""
        self.build(model)

    def identity(self, base: PretrainedConfig) -> Self:  # noqa: ARG002
        """No group."""
        return self.model_copy(update={"groups": ()})


def fill(model: PreTrainedModel, group: Group, left: Sequence[Tensor], right_RI: Tensor) -> None:
    """Put the factors A_i [O_i, R] (in the order of the members) and B [R, I] of one group into `model`."""
    found = [correction(model, name) for name in group.members]
    with torch.no_grad():
        found[0].right.copy_(right_RI)
        for each, left_OR in zip(found, left, strict=True):
            each.left.copy_(left_OR)


def correction(model: PreTrainedModel, name: str) -> Correction:
    """The correction of the quantised linear `name`; ValueError when it has none."""
    module = model.get_submodule(name)
    found = module.correction if isinstance(module, QuantisedLinear) else None
    if not isinstance(found, Correction):
        raise ValueError(f"{name} has no low-rank correction")
    return found


def _attach(group: Group, linears: Sequence[QuantisedLinear]) -> None:
    widths = {linear.in_features for linear in linears}
    if len(widths) > 1:
        raise ValueError(f"{', '.join(group.members)} read inputs of widths {sorted(widths)}: they share no input")
    scale = linears[0].weight_scale
    outputs = [linear.out_features for linear in linears]
    made = corrections(outputs, group.rank, widths.pop(), device=scale.device, dtype=scale.dtype)
    for linear, each in zip(linears, made, strict=True):
        linear.correction = each.train(linear.training)


def _share_factors(model: PreTrainedModel, groups: Sequence[Group]) -> None:
    """Groups whose linears share codes, one by one, with those of an earlier group share its factors."""
    first: dict[tuple[tuple[str, ...], int], Group] = {}
    for group in groups:
        owners = tuple(_owner(model, name) for name in group.members)
        source = first.setdefault((owners, group.rank), group)
        if source is group:
            continue
        for name, owner in zip(group.members, source.members, strict=True):
            model.share(f"{name}.correction.left", f"{owner}.correction.left")
        right = "correction.projection.right"
        model.share(f"{group.members[0]}.{right}", f"{source.members[0]}.{right}")


def _owner(model: PreTrainedModel, name: str) -> str:
    return model._shared.get(f"{name}.{PARTS[0]}", f"{name}.{PARTS[0]}").removesuffix(f".{PARTS[0]}")
