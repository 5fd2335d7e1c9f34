"""What a worker does to fold: train gates beside the frozen model, then drop and share its layers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

import grafts
from grafts.depth import keep_layers
from grafts.loader import load_model, save_model
from grafts.recursive.graft import Recursive
from stages.compress.gates import Gates, gated, kept_layers, penalty
from stages.errors import UserError
from stages.training.cross_entropy import cross_entropy
from stages.training.language_model import LanguageModelling
from stages.training.precision import written_dtype
from stages.training.recipe import Batch, Loss, Worker

if TYPE_CHECKING:
    from stages.compress.fold import FoldParameters
    from stages.stage import Context


@dataclass(kw_only=True)
class Folding(LanguageModelling):
    """Next-token prediction of a frozen model in which only the gates of its layers are trained."""

    params: FoldParameters
    frozen_dtype: torch.dtype
    """What the frozen model computes in. The gates are float32: in bfloat16, near 1, a step of theirs is 0.004."""
    chosen: Path
    """File for the gates and the layers that stayed, as JSON."""
    _frozen: PreTrainedModel | None = None

    @classmethod
    def of(cls, params: FoldParameters, context: Context, frozen_dtype: torch.dtype) -> Folding:
        """The folding that a stage's parameters and inputs ask for."""
        return cls(
            model=context.model("model"),
            data=context.dataset("data"),
            heldout=context.inputs.get("heldout"),
            heldout_windows=params.heldout_windows,
            measure_batch=params.micro_batch,
            parent=context.model("model"),
            cache=context.scratch / "windows",
            out=context.output("model"),
            params=params,
            frozen_dtype=frozen_dtype,
            chosen=context.scratch / "gates.json",
        )

    def prepare(self, worker: Worker) -> None:
        """Map the data and load the model, frozen."""
        super().prepare(worker)
        self._frozen = load_model(self.model.path, dtype=self.frozen_dtype).to(worker.device).requires_grad_(False)

    @property
    def frozen(self) -> PreTrainedModel:
        """The model that is folded."""
        assert self._frozen is not None, "the loop calls `prepare` first"
        return self._frozen

    def build(self) -> nn.Module:
        """The gates, all open."""
        return Gates(self.frozen.config.num_hidden_layers)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy through the gates, and what the gates cost."""
        ids_BT, gates_L = batch.tensors["ids_BT"], model()
        with gated(self.frozen, gates_L.to(self.frozen.dtype)):
            logits_PV = self.frozen(input_ids=ids_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
        ce, params = cross_entropy(logits_PV, ids_BT[:, 1:].flatten()), self.params
        share = params.num_kept(len(gates_L)) / len(gates_L)
        cost = batch.num_targets * penalty(gates_L, share, self._polarisation(model), params.budget)
        return Loss(ce + cost, {"ce": ce.detach(), "gates": cost.detach()})

    def _polarisation(self, engine: Any) -> float:
        """Its weight in this step: it rises from 0 in the first to the whole in the last."""
        last = self.params.num_steps(self.sample_tokens) - 1
        return self.params.polarisation * min(1.0, engine.global_steps / max(1, last))

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Drop the layers with the lowest gates, share the others' weights, save and measure."""
        assert isinstance(model, Gates), f"expected gates, got {type(model).__name__}"
        gates = [round(gate, 6) for gate in model().tolist()]
        layers = kept_layers(gates, self.params.num_kept(len(gates)))
        self.chosen.write_text(json.dumps({"gates": gates, "layers": layers}), encoding="utf-8")
        before = sum(p.numel() for p in self.frozen.parameters())
        folded = self._shared(keep_layers(self.frozen, layers))
        save_model(folded, self.out, tokenizer_from=self.model.path, dtype=written_dtype(self.params.precision))
        count = sum(p.numel() for p in folded.parameters())
        trained = gates[model.num_ends : len(gates) - model.num_ends]
        decided = sum(gate in (0, 1) for gate in trained) / len(trained)
        sizes = {"layers": len(layers), "parameters": count, "parameters_ratio": count / before}
        figures = {**sizes, "gates_decided": decided}
        if self._held is None:
            return figures
        return figures | self._distance(self.frozen, folded, self._held)

    def _shared(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.params.group == 1:
            return model
        how = {"initialisation": self.params.initialisation, "rank": self.params.rank}
        try:
            return grafts.apply(model, [Recursive(loops=self.params.group, order="sequence", **how)])
        except ValueError as error:
            raise UserError(f"the layers that stay cannot share weights: {error}", fix="set `group: 1`") from error
