"""Quantising a model's linears into a `pack-quantized` checkpoint of compressed-tensors, one layer at a time."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.loader import save_model
from grafts.packing import packed_tensors
from grafts.rtn import Bits, Quantised, dequantise, quantise
from stages.artifacts import write_json
from stages.errors import UserError

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Scheme:
    """How each weight is stored."""

    bits: Bits
    group_size: int
    symmetric: bool

    def round(self, weight_OI: Tensor) -> Quantised:
        """`weight_OI` rounded to nearest."""
        return quantise(weight_OI, self.bits, self.group_size, symmetric=self.symmetric)


@dataclass(frozen=True)
class Targets:
    """The linears of a model that are quantised, by name, and those that stay."""

    layers: dict[str, nn.Linear]
    kept: list[str]


@dataclass
class Packed:
    """The packed tensors of a model's linears, and how far the weights moved."""

    scheme: Scheme
    kept: list[str]
    """Linears left in full precision."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    layer_errors: dict[str, float] = field(default_factory=dict)
    """||W - W'|| / ||W|| (Frobenius) by layer."""
    num_quantised: int = 0
    """Weights that are codes now."""

    def add(self, name: str, weight_OI: Tensor, quantised: Quantised) -> None:
        """Pack the codes that stand for the weight of layer `name`."""
        packed = packed_tensors(quantised, self.scheme.bits)
        self.tensors.update({f"{name}.{part}": tensor for part, tensor in packed.items()})
        self.layer_errors[name] = relative_error(weight_OI, quantised)
        self.num_quantised += weight_OI.numel()

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of `model`, with codes in place of the weights that have them."""
        others = {key: value for key, value in model.state_dict().items() if not self._is_packed(key)}
        return {**others, **self.tensors}

    def _is_packed(self, key: str) -> bool:
        return key.endswith(".weight") and key.removesuffix(".weight") in self.layer_errors


def round_model(model: PreTrainedModel, scheme: Scheme, skip: Sequence[str], progress: Progress) -> Packed:
    """Round every linear of `model` but those that `skip` keeps to nearest; the model stays as it is. See `targets`."""
    chosen = targets(model, scheme, skip)
    packed = Packed(scheme, chosen.kept)
    for done, (name, layer) in enumerate(chosen.layers.items(), start=1):
        packed.add(name, layer.weight.data, scheme.round(layer.weight.data))
        progress(done, len(chosen.layers), "layers")
    return packed


def targets(model: PreTrainedModel, scheme: Scheme, skip: Sequence[str]) -> Targets:
    """The linears of `model` to quantise: all but those whose name matches a glob in `skip`.

    Raises UserError when a weight is not finite, is tied to the embedding, has a width no group divides, or belongs to
    a structure that the format has no place for.
    """
    layers, kept = choose_layers(model, skip)
    for name, layer in layers.items():
        _require_packable(name, layer, scheme)
    return Targets(layers, kept)


def save_packed(model: PreTrainedModel, packed: Packed, directory: Path, tokenizer_from: Path) -> None:
    """Write the packed checkpoint of `model` into `directory`, with the config that tells every loader how it is."""
    save_model(model, directory, tokenizer_from=tokenizer_from, state_dict=packed.state_dict(model))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config(packed.scheme, packed.kept)
    write_json(directory / "config.json", config)


def quantization_config(scheme: Scheme, kept: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of config.json, as compressed-tensors and vLLM read it."""
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group",
        "group_size": scheme.group_size,
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": list(kept),
    }
    # transformers 5.23 builds packed zero points with the unpacked shape and refuses the checkpoint, unless it unpacks
    # the weights while it reads them.
    return config if scheme.symmetric else {**config, "dequantize": True}


def choose_layers(model: nn.Module, skip: Sequence[str]) -> tuple[dict[str, nn.Linear], list[str]]:
    """The linears to quantise by name, and the names of those that `skip` keeps."""
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    _require_matches(model, skip)
    _require_only_linears(model, skip)
    kept = [name for name in linears if _matches(name, skip)]
    chosen = {name: layer for name, layer in linears.items() if name not in set(kept)}
    if not chosen:
        raise UserError(f"no linear layer is left to quantise of {len(linears)}", fix=f"shorten skip: {list(skip)}")
    _require_untied(model, chosen)
    return chosen, kept


def relative_error(weight_OI: Tensor, quantised: Quantised) -> float:
    """||W - W'|| / ||W|| in the Frobenius norm; 0 for a weight of zeros."""
    weight_OI = weight_OI.float()
    norm = torch.linalg.vector_norm(weight_OI)
    moved = torch.linalg.vector_norm(weight_OI - dequantise(quantised).float())
    return (moved / norm).item() if norm > 0 else 0.0


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _require_matches(model: nn.Module, skip: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            raise UserError(f"skip: {pattern!r} matches no part of the model", fix=f"names like it: {', '.join(near)}")


def _require_only_linears(model: nn.Module, skip: Sequence[str]) -> None:
    """Refuse weights that a loop over linears would pass by without a word: fused experts, transposed linears."""
    known = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            if parameter.ndim >= 2 and not isinstance(module, known) and not _matches(name, skip):
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
        for tied in {first, name} if first != name else ():
            if tied.removesuffix(".weight") in chosen:
                raise UserError(
                    f"{tied} is one tensor with {first if tied == name else name}: packing it would untie them",
                    fix=f"add {tied.removesuffix('.weight')!r} to skip",
                )


def _require_packable(name: str, layer: nn.Linear, scheme: Scheme) -> None:
    if layer.in_features % scheme.group_size:
        divisors = [size for size in range(8, layer.in_features + 1, 8) if layer.in_features % size == 0]
        raise UserError(
            f"group_size {scheme.group_size} does not divide the {layer.in_features} input features of {name}",
            fix=f"choose group_size from {divisors}, or add {name!r} to skip",
        )
    if not torch.isfinite(layer.weight).all():
        bad = int((~torch.isfinite(layer.weight)).sum())
        raise UserError(
            f"{name}.weight holds {bad} values that are not finite, of {layer.weight.numel()}",
            fix="the model is damaged: make it again, or look at the training that made it",
        )
