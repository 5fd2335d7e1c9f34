"""What a worker does to retrain a pruned model: adapters and vectors on, the rest frozen, merged at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from grafts.loader import load_model
from stages.artifacts import Model
from stages.compress.adapted import adapt, merge, num_trained
from stages.compress.masks import load_masks, save_masks
from stages.compress.pruning import apply_masks, decoder_linears
from stages.errors import StageError
from stages.training.language_model import LanguageModelling

if TYPE_CHECKING:
    from stages.compress.perp import PerpParameters
    from stages.stage import Context


@dataclass(kw_only=True)
class Retraining(LanguageModelling):
    """Next-token prediction in few parameters of a pruned model."""

    params: PerpParameters
    seed: int
    """Of the adapters."""

    @classmethod
    def of(cls, params: PerpParameters, context: Context) -> Retraining:
        """The retraining that a stage's parameters and inputs ask for."""
        model: Model = context.model("model")
        parent: Model | None = context.inputs.get("parent")
        return cls(
            model=model,
            data=context.dataset("data"),
            heldout=context.inputs.get("heldout"),
            heldout_windows=params.heldout_windows,
            measure_batch=params.micro_batch,
            parent=parent or model,
            cache=context.scratch / "windows",
            out=context.output("model"),
            params=params,
            seed=context.seed,
        )

    def build(self) -> nn.Module:
        """The pruned model, with adapters, in which only they and the vectors train."""
        model = load_model(self.model.path, dtype=self.worker.dtype).requires_grad_(False)
        masks = load_masks(self.model.path)
        apply_masks(decoder_linears(model), masks)
        for parameter in model.parameters():
            parameter.requires_grad_(self.params.vectors and parameter.ndim == 1)
        if self.params.adapter != "none":
            scale = self.params.alpha / self.params.rank
            adapt(model, masks, self.params.adapter, self.params.rank, scale, self.seed)
        return model

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Merge, save with the masks, and measure."""
        trained = num_trained(model)
        merge(model)
        masks = load_masks(self.model.path)
        sparsity = require_pruned(decoder_linears(model), masks)
        total = sum(p.numel() for p in model.parameters())
        figures = {"sparsity": sparsity, "trained_parameters": trained, "trained_share": trained / total}
        figures |= super().finish(model)
        save_masks(masks, self.out)
        return figures


def require_pruned(linears: dict[str, nn.Linear], masks: dict[str, Tensor]) -> float:
    """The share of weights pruned. Raises StageError when one of them is not zero."""
    for name, mask_OI in masks.items():
        alive = linears[name].weight.data[~mask_OI.to(linears[name].weight.device)].count_nonzero().item()
        if alive:
            raise StageError(f"{alive} pruned weights of {name} are not zero after merging", fix="report this fault")
    return sum((~mask).sum().item() for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
