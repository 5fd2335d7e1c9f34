"""The graft `quantised`: every linear that is not skipped holds codes instead of a weight.

A model of a standard class is better stored as compressed-tensors, which others read too (`stages.quantize.packed`).
This is for models that no one else's code can build: with hybrid heads, tied layers, or low-rank corrections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Self

from annotated_types import Ge
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from grafts.graft import Graft, Place, Sources
from grafts.quantised.linear import PARTS, QuantisedLinear
from grafts.rtn import Bits, quantise


class QuantisedLinears(Graft):
    """Linears as integers of 2, 3, 4 or 8 bits, one scale for each group of input features."""

    name: ClassVar[str] = "quantised"
    place: ClassVar[Place] = "linears"

    bits: Bits
    """Bits a weight."""
    group_size: Annotated[int, Ge(1)]
    """Input features that share one scale; the last group of a row may be shorter."""
    symmetric: bool
    """Whether codes are centred on zero; if not, each group has a zero point."""
    skip: tuple[str, ...] = ("lm_head",)
    """Globs over the names of the linears that stay as they are."""
    bits_of: dict[str, Bits] = {}
    """Other bits for single linears, by name."""

    def check(self, base: PretrainedConfig, _earlier: Sequence[Graft]) -> None:
        """ValueError if the head is to be quantised and shares its weight with the embedding."""
        if getattr(base, "tie_word_embeddings", False) and not self._skips("lm_head"):
            raise ValueError("lm_head is one tensor with the embedding, which is not quantised: add lm_head to skip")

    def build(self, model: PreTrainedModel) -> None:
        """Put empty quantised linears in place of the linears; linears that shared a weight share codes."""
        for name, linear in self._chosen(model):
            _replace(model, name, self._empty(name, linear))
        _share_codes(model)

    def convert(self, model: PreTrainedModel, sources: Sources) -> None:  # noqa: ARG002, rounding asks no data
        """Quantised linears with the weights rounded to nearest; `QuantisedLinear.fill` takes better codes."""
        for name, linear in self._chosen(model):
            quantised = self._empty(name, linear)
            if f"{name}.weight" not in model._shared:
                weight_OI = linear.weight.data
                quantised.fill(quantise(weight_OI, quantised.bits, self.group_size, symmetric=self.symmetric))
            _replace(model, name, quantised)
        _share_codes(model)

    def identity(self, base: PretrainedConfig) -> Self:  # noqa: ARG002
        """Every linear skipped."""
        return self.model_copy(update={"skip": ("*",), "bits_of": {}})

    def _chosen(self, model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
        for name, parameter, module in unquantisable(model, self.skip):
            shape, kind = tuple(parameter.shape), type(module).__name__
            raise ValueError(f"{name} of shape {shape} ({kind}) is no linear's weight: add it to skip to keep it")
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        chosen = {name: linear for name, linear in linears.items() if not self._skips(name)}
        unknown = sorted(self.bits_of.keys() - chosen.keys())
        if unknown:
            raise ValueError(f"bits_of names {', '.join(unknown)}: no linears of the model that are quantised")
        yield from chosen.items()

    def _empty(self, name: str, linear: nn.Linear) -> QuantisedLinear:
        bits = self.bits_of.get(name, self.bits)
        return QuantisedLinear(linear, bits, self.group_size, symmetric=self.symmetric).train(linear.training)

    def _skips(self, name: str) -> bool:
        return matches(name, self.skip)


def unquantisable(model: nn.Module, skip: Sequence[str]) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Weights that a loop over linears would pass by without a word: fused experts, transposed linears."""
    known = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            if parameter.ndim >= 2 and not isinstance(module, known) and not matches(name, skip):
                yield name, parameter, module


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the globs `patterns` fits `name`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def quantised_linears(model: nn.Module) -> dict[str, QuantisedLinear]:
    """The quantised linears of `model`, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _share_codes(model: PreTrainedModel) -> None:
    """Where weights were declared shared, declare their codes shared."""
    quantised = quantised_linears(model)
    for name, linear in quantised.items():
        owner = model._shared.pop(f"{name}.weight", "").removesuffix(".weight")
        if not owner:
            continue
        if owner not in quantised or quantised[owner].bits != linear.bits:
            raise ValueError(f"{name} shares its weight with {owner}, which is not quantised alike: skip both or none")
        for part in PARTS[:2] if linear.symmetric else PARTS:
            model.share(f"{name}.{part}", f"{owner}.{part}")
