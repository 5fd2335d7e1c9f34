"""A corrected model taken apart for others: its codes as a compressed-tensors checkpoint, its corrections as a LoRA.

PEFT computes W'x + B_lora (A_lora x): what GlowQ does, with each linear's own copy of the shared factor. Nothing is
rounded again, so both together give the same logits as the grafted model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from grafts.bases import base_class
from grafts.loader import load_model, save_model, stored_dtype
from grafts.lowrank.module import Correction
from grafts.quantised.graft import QuantisedLinears, quantised_linears
from grafts.quantised.linear import QuantisedLinear
from stages.artifacts import write_json
from stages.errors import UserError
from stages.quantize.packed import Scheme, quantization_config

ADAPTER: Final = "adapter"
"""Folder of the adapter, inside that of the model it belongs to."""


def export_adapter(source: Path, out: Path) -> int:
    """Write the model of `quantize.glowq` in `source` as a checkpoint in `out` and a LoRA in `out/adapter`.

    Plain `transformers` reads the first, `peft.PeftModel.from_pretrained(model, out / "adapter")` the second. Returns
    the bytes of the adapter. Raises UserError when the model has no corrections, or grafts that nobody else can build.
    """
    model = load_model(source, dtype=stored_dtype(source))
    graft = _quantised(model)
    linears = quantised_linears(model)
    corrections = {name: each.correction for name, each in linears.items() if isinstance(each.correction, Correction)}
    if not corrections:
        raise UserError("the model has no low-rank corrections", where="model", fix="give a model of quantize.glowq")
    _save_codes(model, linears, graft, out, source)
    return _save_adapter(corrections, out / ADAPTER)


def _quantised(model: PreTrainedModel) -> QuantisedLinears:
    found = [graft for graft in getattr(model.config, "grafts", ()) if isinstance(graft, QuantisedLinears)]
    others = [graft.name for graft in getattr(model.config, "grafts", ()) if graft.name not in ("quantised", "lowrank")]
    if others or not found or found[0].bits_of:
        what = ", ".join(others) or ("no quantised linears" if not found else "linears of several bits")
        raise UserError(
            f"the model has {what}: only a standard model, quantised and corrected, can be taken apart",
            where="model",
            fix="give a model that quantize.glowq made of a standard one; others load after `import grafts`",
        )
    return found[0]


def _save_codes(
    model: PreTrainedModel, linears: Mapping[str, QuantisedLinear], graft: QuantisedLinears, out: Path, source: Path
) -> None:
    with torch.device("meta"):
        plain = base_class(model.config.base.model_type)(model.config.base)
    kept = [name for name, each in plain.named_modules() if isinstance(each, nn.Linear) and name not in linears]
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".correction." not in name}
    shapes = {
        f"{name}.weight_shape": torch.tensor((each.out_features, each.in_features)) for name, each in linears.items()
    }
    save_model(plain, out, tokenizer_from=source, state_dict={**tensors, **shapes})
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    scheme = Scheme(graft.bits, graft.group_size, graft.symmetric)
    # PEFT 0.21 cannot wrap a linear that holds codes: the checkpoint says that weights are unpacked while it is read.
    quantization = {**quantization_config(scheme, kept), "dequantize": True}
    write_json(out / "config.json", {**config, "quantization_config": quantization})


def _save_adapter(corrections: Mapping[str, Correction], out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, each in corrections.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = each.right.data.clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = each.left.data.clone()
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "adapter_model.safetensors").chmod(0o644)
    write_json(out / "adapter_config.json", _lora_config({name: len(each.right) for name, each in corrections.items()}))
    return sum(tensor.nbytes for tensor in tensors.values())


def _lora_config(ranks: Mapping[str, int]) -> dict[str, Any]:
    """The `LoraConfig` of PEFT; alpha is the rank everywhere, so that nothing is scaled."""
    usual = max(set(ranks.values()), key=list(ranks.values()).count)
    unusual = {name: rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }
