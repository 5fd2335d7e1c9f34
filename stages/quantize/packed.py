"""Quantising a model's linears into a `pack-quantized` checkpoint of compressed-tensors, one layer at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.loader import save_model
from grafts.packing import packed_tensors
from grafts.rtn import Bits, Quantised, dequantise, quantise
from stages.artifacts import write_json
from stages.quantize.targets import targets
from stages.stage import Progress

if TYPE_CHECKING:
    from stages.quantize.calibrate import Solved
    from stages.quantize.correction import Restored


@dataclass(frozen=True)
class Scheme:
    """How each weight is stored."""

    bits: Bits
    group_size: int
    symmetric: bool

    def round(self, weight_OI: Tensor) -> Quantised:
        """`weight_OI` rounded to nearest."""
        return quantise(weight_OI, self.bits, self.group_size, symmetric=self.symmetric)


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
    bits_of: dict[str, Bits] = field(default_factory=dict)
    """Layers in other bits than the scheme's."""
    corrections: list[Restored] = field(default_factory=list)
    """Low-rank corrections beside the codes."""
    twins: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    """Groups of linears that share their weights with a group that has codes → that group."""

    def add(self, name: str, weight_OI: Tensor, quantised: Quantised) -> None:
        """Pack the codes that stand for the weight of layer `name`."""
        packed = packed_tensors(quantised, self.scheme.bits)
        self.tensors.update({f"{name}.{part}": tensor for part, tensor in packed.items()})
        self.layer_errors[name] = relative_error(weight_OI, quantised)
        self.num_quantised += weight_OI.numel()

    def upgrade(self, name: str, solved: Solved, bits: Bits) -> None:
        """Store layer `name` in codes of other bits than the scheme's."""
        for part, tensor in packed_tensors(solved.quantised, bits).items():
            self.tensors[f"{name}.{part}"] = tensor
        self.layer_errors[name] = relative_error(solved.weight, solved.quantised)
        self.bits_of[name] = bits

    def code_bytes(self) -> int:
        """Of all codes, scales and zero points."""
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if not name.endswith(".weight_shape"))

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of `model`, with codes in place of the weights that have them."""
        others = {key: value for key, value in model.state_dict().items() if not self._is_packed(key)}
        return {**others, **self.tensors}

    def _is_packed(self, key: str) -> bool:
        return key.endswith(".weight") and key.removesuffix(".weight") in self.layer_errors


def round_model(model: PreTrainedModel, scheme: Scheme, skip: Sequence[str], progress: Progress) -> Packed:
    """Round every linear of `model` but those that `skip` keeps to nearest; the model stays as it is. See `targets`."""
    chosen = targets(model, scheme.group_size, skip)
    packed = Packed(scheme, chosen.kept)
    for done, (name, layer) in enumerate(chosen.layers.items(), start=1):
        packed.add(name, layer.weight.data, scheme.round(layer.weight.data))
        progress(done, len(chosen.layers), "layers")
    return packed


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


def relative_error(weight_OI: Tensor, quantised: Quantised) -> float:
    """||W - W'|| / ||W|| in the Frobenius norm; 0 for a weight of zeros."""
    weight_OI = weight_OI.float()
    norm = torch.linalg.vector_norm(weight_OI)
    moved = torch.linalg.vector_norm(weight_OI - dequantise(quantised).float())
    return (moved / norm).item() if norm > 0 else 0.0
