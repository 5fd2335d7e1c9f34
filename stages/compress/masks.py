"""Which weights of a matrix stay, as pure functions, and how the choice is stored beside a model.

Masks are kept as such: where a pruned weight is zero says nothing about weights that were zero before, or that training
or rounding made zero since.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.compress.mask_file import FILE, require_masks


def unstructured(scores_OI: Tensor, sparsity: float, *, by_row: bool) -> Tensor:
    """True where a weight stays: all but the share `sparsity` of lowest scores, of each row or of the whole matrix.

    As many as asked for, to the weight: of equal scores the first go.
    """
    scores_RN = scores_OI if by_row else scores_OI.reshape(1, -1)
    num_gone = round(scores_RN.shape[1] * sparsity)
    gone_RN = scores_RN.sort(dim=1, stable=True).indices[:, :num_gone]
    return torch.ones_like(scores_RN, dtype=torch.bool).scatter_(1, gone_RN, False).view_as(scores_OI)


def structured(scores_OI: Tensor, num_kept: int, group: int) -> Tensor:
    """True where a weight stays: the `num_kept` highest of every `group` neighbours in a row. ValueError if uneven."""
    if scores_OI.shape[1] % group:
        raise ValueError(f"rows of {scores_OI.shape[1]} weights do not divide into groups of {group}")
    scores_RG = scores_OI.reshape(-1, group)
    kept_RK = scores_RG.sort(dim=1, descending=True, stable=True).indices[:, :num_kept]
    return torch.zeros_like(scores_RG, dtype=torch.bool).scatter_(1, kept_RK, True).view_as(scores_OI)


def magnitude(weight_OI: Tensor) -> Tensor:
    """|W|."""
    return weight_OI.float().abs()


def wanda(weight_OI: Tensor, input_norm_I: Tensor) -> Tensor:
    """|W| times the Euclidean norm of its input over the calibration text (Wanda, arXiv 2306.11695)."""
    return weight_OI.float().abs() * input_norm_I


def save_masks(masks: Mapping[str, Tensor], directory: Path) -> None:
    """Write masks by the name of their linear, eight weights a byte, into a model's directory."""
    file = directory / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    packed = {}
    for name, mask_OI in masks.items():
        packed[name] = torch.from_numpy(np.packbits(mask_OI.numpy(), axis=None))
        packed[f"{name}.shape"] = torch.tensor(mask_OI.shape)
    save_file(packed, file)
    file.chmod(0o644)  # safetensors writes 0600, which a shared store cannot serve


def load_masks(directory: Path) -> dict[str, Tensor]:
    """The masks of the model in `directory`, by the name of their linear. Raises UserError when it has none."""
    packed = load_file(require_masks(directory))
    names = [name for name in packed if not name.endswith(".shape")]
    return {name: _unpacked(packed[name], packed[f"{name}.shape"].tolist()) for name in names}


def _unpacked(bits: Tensor, shape: list[int]) -> Tensor:
    count = shape[0] * shape[1]
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(*shape)
