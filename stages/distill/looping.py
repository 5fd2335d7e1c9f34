"""What `distill.recursive` does: put the recursive core into the teacher, then distil the teacher into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import grafts
from grafts.loader import load_model, save_model, stored_dtype
from grafts.recursive.exits import exits
from grafts.recursive.graft import Recursive
from stages.distill.losses import distill_loss
from stages.distill.recipe import Distillation
from stages.distill.text import Text
from stages.errors import UserError
from stages.evaluate.distance import evaluating
from stages.training.heldout import heldout_distance
from stages.training.recipe import Batch, Loss

if TYPE_CHECKING:
    from stages.distill.recursive import RecursiveParameters
    from stages.stage import Context


INITIAL: Final = ("kl_to_parent", "perplexity_ratio", "top1_agreement")
"""Figures of the distance that are told of a model before training."""


@dataclass(frozen=True)
class Converted:
    """A looped model before training."""

    path: Path
    graft: dict[str, Any]
    figures: dict[str, float]


def convert(params: RecursiveParameters, context: Context) -> Converted:
    """Loop the teacher's layers, save the model to `scratch`, and measure it where there is held-out text."""
    source, path, graft = context.model("teacher").path, context.scratch / "converted", recursive_graft(params)
    model = load_model(source, dtype=stored_dtype(source))
    before = _num_parameters(model)
    try:
        looped = grafts.apply(model, [graft], seed=context.seed)
    except ValueError as error:
        raise UserError(str(error), fix="see docs/methods/recursive.md for what can be looped") from error
    save_model(looped, path, tokenizer_from=source)
    count, block = _num_parameters(looped), graft.core(looped.config).block
    context.say(f"{params.loops} loops over {block} layers: {count:,} parameters of {before:,}")
    sizes = {"parameters": count, "parameters_ratio": count / before}
    return Converted(path, graft.to_dict(), {**sizes, **_initial(params, context, looped)})


def _initial(params: RecursiveParameters, context: Context, looped: PreTrainedModel) -> dict[str, float]:
    """The distance to the teacher before any training."""
    teacher = partial(load_model, context.model("teacher").path, dtype=looped.dtype)
    how = {"limit": params.heldout_windows, "batch_size": params.micro_batch}
    found = heldout_distance(context, teacher, looped, **how)
    return {f"initial_{name}": found[name] for name in INITIAL if name in found}


def _num_parameters(model: nn.Module) -> int:
    """Each shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def recursive_graft(params: RecursiveParameters) -> Recursive:
    """The graft that `params` ask for."""
    return Recursive(**{name: getattr(params, name) for name in Recursive.model_fields})


@dataclass
class RecursiveDistillation(Distillation):
    """Distillation into a looped student; each loop but the last may learn from the last."""

    params: RecursiveParameters

    def asked(self) -> dict[str, bool]:
        """Hidden states too, where there are exits."""
        return {**super().asked(), **({"output_hidden_states": True} if self.params.exit_weight else {})}

    def judge(self, model: nn.Module, student: Any, batch: Batch, text: Text) -> Loss:
        """The loss of the whole model, and of each exit against the whole model's logits."""
        found = super().judge(model, student, batch, text)
        if not self.params.exit_weight:
            return found
        module = getattr(model, "module", model)
        *early, last = (text.counted(logits) for logits in exits(module, student, self._ends(module)))
        losses = [distill_loss(each, last.detach(), text.targets(), self.mix) for each in early]
        total = sum((self.params.exit_weight * loss.total for loss in losses), start=found.total)
        return Loss(total, {**found.parts, **{f"exit_{n + 1}": loss.kl for n, loss in enumerate(losses)}})

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save and measure, the exits too."""
        figures = super().finish(model)
        if not self.params.exit_weight or self.live.heldout is None:
            return figures
        assert isinstance(model, PreTrainedModel), "as saved"
        shares = exit_agreement(model, self._ends(model), self.live.heldout, self.params.micro_batch)
        return {**figures, **{f"exit_{n + 1}_top1_agreement": share for n, share in enumerate(shares)}}

    def _ends(self, model: nn.Module) -> list[int]:
        return recursive_graft(self.params).core(model.config).ends()


@torch.no_grad()
def exit_agreement(model: PreTrainedModel, ends: Sequence[int], windows_NT: Tensor, batch_size: int) -> list[float]:
    """For each exit but the last, the share of positions where it prefers the token that the whole model does."""
    agreed, num_positions = torch.zeros(len(ends) - 1, dtype=torch.float64), 0
    with evaluating(model):
        for ids_BT in windows_NT.split(batch_size):
            output = model(input_ids=ids_BT[:, :-1].to(model.device), use_cache=False, output_hidden_states=True)
            *early, last = (logits.argmax(-1) for logits in exits(model, output, ends))
            agreed += torch.tensor([(each == last).sum().item() for each in early], dtype=torch.float64)
            num_positions += last.numel()
    return (agreed / num_positions).tolist()
