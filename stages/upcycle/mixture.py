"""What a worker does to train a mixture: the text's loss, the routers' losses, and what the routers are doing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from grafts.config import GraftedConfig
from grafts.experts.graft import Experts
from grafts.experts.routing import balance_loss, expert_load, router_entropy, z_loss
from grafts.experts.standard import standard_coefficient
from stages.artifacts import Dataset
from stages.training.cross_entropy import cross_entropy
from stages.training.recipe import Batch, Loss, Worker
from stages.training.windows import first_windows
from stages.upcycle.blend import Blended
from stages.upcycle.loads import measure_loads


@dataclass(kw_only=True)
class MixtureTraining(Blended):
    """Cross-entropy, plus the load-balance and the z-loss of the layers' routers, means over the layers."""

    keeps_apart: ClassVar[bool] = False
    top_k: int
    """Experts that a token goes through."""
    balance_weight: float
    z_weight: float
    domains: Sequence[Dataset]
    """Held-out text of each domain, to see which experts it goes to at the end."""
    loads_file: Path
    """Where that is written, as JSON: a list of `Loads`, one a domain."""
    _held_domains: list[Tensor] = field(default_factory=list, repr=False)

    def prepare(self, worker: Worker) -> None:
        """Map the data, and read the held-out windows of all domains."""
        super().prepare(worker)
        self._held_domains = [
            first_windows(domain, self.cache, self.heldout_windows, f"domains[{number}]")
            for number, domain in enumerate(self.domains)
        ]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The losses of a micro-batch; those of the routers count once for each target token, as the text's does."""
        ids_BT = batch.tensors["ids_BT"]
        output = model(input_ids=ids_BT[:, :-1], use_cache=False, output_router_logits=True)
        ce = cross_entropy(output.logits.flatten(0, 1), ids_BT[:, 1:].flatten())
        routers = [logits_PN.float() for logits_PN in output.router_logits]
        balance = torch.stack([balance_loss(each, self.top_k) for each in routers]).mean()
        z = torch.stack([z_loss(each) for each in routers]).mean()
        extra = self.balance_weight * balance + self.z_weight * z
        parts = {"ce": ce, "balance": balance * batch.num_targets, "z": z * batch.num_targets}
        seen = {name: value * batch.num_targets for name, value in self._seen(output, routers).items()}
        return Loss(ce + batch.num_targets * extra, {**parts, **seen})

    def finish(self, model: nn.Module) -> dict[str, float]:
        """As for any language model, with the weights of the routers' losses; then where the domains' tokens go."""
        assert isinstance(model, PreTrainedModel), f"expected a PreTrainedModel, got {type(model).__name__}"
        self._note_weights(model.config)
        figures = super().finish(model)
        loads = [measure_loads(model, each, self.top_k, self.measure_batch) for each in self._held_domains]
        self.loads_file.parent.mkdir(parents=True, exist_ok=True)
        self.loads_file.write_text(json.dumps([asdict(each) for each in loads]), encoding="utf-8")
        return figures

    def _note_weights(self, config: PretrainedConfig) -> None:
        """For whoever asks the saved model for its own loss; the standard classes have no z-loss."""
        if isinstance(config, GraftedConfig):
            used = {"balance_weight": self.balance_weight, "z_weight": self.z_weight}
            config.grafts = tuple(
                graft.model_copy(update=used) if isinstance(graft, Experts) else graft for graft in config.grafts
            )
        elif hasattr(config, "router_aux_loss_coef"):
            config.router_aux_loss_coef = standard_coefficient(self.balance_weight, self.top_k)

    @torch.no_grad()
    def _seen(self, output: Any, routers: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the routers are doing, for the curves: means over the layers."""
        loads_LN = torch.stack([expert_load(each, self.top_k) for each in routers])
        seen = {
            "load_max": loads_LN.amax(-1).mean(),
            "load_min": loads_LN.amin(-1).mean(),
            "router_entropy": torch.stack([router_entropy(each) for each in routers]).mean(),
        }
        attention = getattr(output, "attention_router_logits", None)
        if attention:
            seen["attention_entropy"] = torch.stack([router_entropy(each) for each in attention]).mean()
        dropped = getattr(output, "dropped_share", None)
        return seen if dropped is None else {**seen, "dropped_share": dropped}
