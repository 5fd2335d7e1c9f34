"""Writing a quantised model that only this project's loader can build: with codes, and corrections, as grafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grafts import GraftedForCausalLM, apply
from grafts.bases import base_class
from grafts.config import GraftedConfig
from grafts.graft import Graft
from grafts.loader import save_model
from grafts.lowrank.graft import Group, LowRank, fill
from grafts.quantised.graft import QuantisedLinears
from grafts.rtn import Bits
from stages.errors import UserError
from stages.quantize.packed import Packed, Scheme, save_packed
from stages.quantize.targets import is_grafted


def save_quantised(
    model: PreTrainedModel, packed: Packed, skip: Sequence[str], directory: Path, tokenizer_from: Path
) -> None:
    """Write `model` with the codes and corrections of `packed`; `model` is spent.

    In the format of compressed-tensors for a standard structure in one number of bits without corrections.
    """
    if not is_grafted(model) and not packed.corrections and not packed.bits_of:
        save_packed(model, packed, directory, tokenizer_from)
        return
    grafts = [quantised_graft(packed.scheme, skip, _bits_of(packed)), lowrank_graft(packed)]
    grafted = apply(model, [graft for graft in grafts if graft is not None])
    with torch.no_grad():
        _fill(grafted, packed.tensors)
        for each in packed.corrections:
            fill(grafted, Group(members=each.members, rank=each.rank), each.left, each.right)
    save_model(grafted, directory, tokenizer_from=tokenizer_from)


def quantised_graft(scheme: Scheme, skip: Sequence[str], bits_of: Mapping[str, Bits] | None = None) -> QuantisedLinears:
    """The graft that stores what is not skipped in `scheme`, single linears in the bits of `bits_of`."""
    return QuantisedLinears(
        bits=scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        skip=tuple(skip),
        bits_of=dict(bits_of or {}),
    )


def lowrank_graft(packed: Packed) -> LowRank | None:
    """The graft with the corrections of `packed`, for linears that share weights with corrected ones as well."""
    ranks = {each.members: each.rank for each in packed.corrections}
    groups = [Group(members=members, rank=rank) for members, rank in ranks.items()]
    twins = [
        Group(members=mine, rank=ranks[theirs])
        for members, owners in packed.twins.items()
        for mine, theirs in _parts(members, owners, ranks)
    ]
    return LowRank(groups=(*groups, *twins)) if groups else None


def require_graftable(model: PreTrainedModel, graft: Graft) -> None:
    """Raise UserError unless `graft` can be put on `model`: asked before any compute."""
    earlier = model.config.grafts if isinstance(model, GraftedForCausalLM) else ()
    base = model.config.base if isinstance(model, GraftedForCausalLM) else model.config
    try:
        base_class(base.model_type)
        GraftedConfig(base, (*earlier, graft))
    except ValueError as error:
        raise UserError(
            str(error), where="model", fix="give a model that this graft can follow: see docs/grafts.md"
        ) from None


def _bits_of(packed: Packed) -> dict[str, Bits]:
    """By linear, those that share their weight with one named included."""
    pairs = [pair for members, owners in packed.twins.items() for pair in zip(members, owners, strict=True)]
    twins = {mine: packed.bits_of[theirs] for mine, theirs in pairs if theirs in packed.bits_of}
    return {**packed.bits_of, **twins}


def _parts(
    members: tuple[str, ...], owners: tuple[str, ...], ranks: dict[tuple[str, ...], int]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The group as it was corrected: whole, or one by one, or not at all."""
    if owners in ranks:
        yield members, owners
        return
    for mine, theirs in zip(members, owners, strict=True):
        if (theirs,) in ranks:
            yield (mine,), (theirs,)


def _fill(model: GraftedForCausalLM, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not name.endswith(".weight_shape"):  # the format's own; a module knows its shape
            model.get_parameter_or_buffer(name).copy_(tensor)
