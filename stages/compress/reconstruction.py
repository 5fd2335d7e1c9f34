"""Layer-wise reconstruction: each pruned linear alone learns to give what it gave before pruning (arXiv 2312.15230)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from grafts.loader import load_model
from stages.compress.adapted import AdaptedLinear, reset
from stages.compress.retraining import Retraining
from stages.quantize.flow import watching_inputs
from stages.training.recipe import Batch, Loss, Worker


class Reconstructed(nn.Module):
    """The adapted linears alone, in the order of `names`; the model they belong to is never run."""

    def __init__(self, linears: dict[str, AdaptedLinear]) -> None:
        super().__init__()
        self.names, self.linears = list(linears), nn.ModuleList(linears.values())

    def forward(self, parent: PreTrainedModel, ids_BT: Tensor, *, merged: bool = False) -> Tensor:
        """|W x - W' x|^2 / |W x|^2 at the inputs x of each of `parent`'s linears, summed over tokens, [linears].

        The inputs are those of the dense model, so linears do not depend on each other. W' is the weight that is
        trained with, or with `merged` the one that is written.
        """
        dense = {name: _linear(parent, name) for name in self.names}
        ours, found = dict(zip(self.names, self.linears, strict=True)), dict[str, Tensor]()

        def compare(name: str, x: Tensor) -> None:
            weight_OI = ours[name].merged_weight() if merged else ours[name].weight()
            found[name] = _relative_error(linear(x, dense[name].weight), linear(x, weight_OI))

        with watching_inputs(dense, compare):
            parent(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
        return torch.stack([found[name] for name in self.names])


@dataclass(kw_only=True)
class Reconstruction(Retraining):
    """Fits every adapter to the dense linear's outputs on text, all in one pass of the dense model."""

    _dense: PreTrainedModel | None = None

    def prepare(self, worker: Worker) -> None:
        """Map the data and load the parent, frozen."""
        super().prepare(worker)
        self._dense = load_model(self.parent.path, dtype=worker.dtype).to(worker.device).requires_grad_(False)

    @property
    def dense(self) -> PreTrainedModel:
        """The model before pruning."""
        assert self._dense is not None, "the loop calls `prepare` first"
        return self._dense

    def build(self) -> nn.Module:
        """The adapted linears of the pruned model."""
        model = super().build().requires_grad_(False)
        found = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
        for module in found.values():
            module.left.requires_grad_(True)
            module.right.requires_grad_(True)
        return Reconstructed(found)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The mean over linears of their relative errors: their gradients do not meet."""
        ids_BT = batch.tensors["ids_BT"][:, :-1]
        return Loss(model(self.dense, ids_BT).mean())

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Put back what training did not help, merge, save and measure."""
        assert isinstance(model, Reconstructed), f"expected adapted linears, got {type(model).__name__}"
        errors = self._keep_best(model)
        whole = super().build().to(self.worker.device).requires_grad_(False)
        for name, module in zip(model.names, model.linears, strict=True):
            whole.set_submodule(name, module)
        return {**super().finish(whole), **errors}

    def _keep_best(self, model: Reconstructed) -> dict[str, float]:
        """Reset the adapters that left a larger error on the held-out text than they began with."""
        if self._held is None:
            return {}
        before = self._errors(self.build().to(self.worker.device), self._held)
        after = self._errors(model, self._held)
        for module, worse in zip(model.linears, after > before, strict=True):
            if worse:
                reset(module)
        best = torch.minimum(before, after)
        return {"initial_layer_error": before.mean().item(), "layer_error": best.mean().item()}

    @torch.no_grad()
    def _errors(self, model: nn.Module, windows_NT: Tensor) -> Tensor:
        """The mean relative error of each linear, as it would be written, on `windows_NT`."""
        batches = windows_NT.to(self.worker.device).split(self.measure_batch)
        sums = [model(self.dense, ids_BT, merged=True).double().cpu() for ids_BT in batches]
        return torch.stack(sums).sum(0) / windows_NT.numel()


def _linear(parent: PreTrainedModel, name: str) -> nn.Linear:
    found = parent.get_submodule(name)
    assert isinstance(found, nn.Linear), f"{name} of the parent is a {type(found).__name__}"
    return found


def _relative_error(dense: Tensor, pruned: Tensor) -> Tensor:
    """Summed over tokens, in float32."""
    energy = dense.float().square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return ((dense.float() - pruned.float()).square().sum(-1) / energy).sum()
