"""DP-SGD on the few parameters of an adapter, by Opacus, and sampling from what it learnt.

Opacus computes the gradient of every document by itself, clips it, adds the noise and counts the steps; here are the
model, the loss and the loop around it. The noise and the choice of documents come from the operating system's entropy
and are kept nowhere: who knows their seed can take the noise off again, and a pipeline's seed is no secret.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.data.private_examples import Examples, Prompt
from stages.errors import StoppedError
from stages.evaluate.generation import written
from stages.stage import Progress
from stages.training.cross_entropy import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Plan:
    """How to train; `batch_documents` are in a step on average."""

    learning_rate: float
    clip: float
    noise_multiplier: float
    steps: int
    micro_batch: int
    batch_documents: int


def secret_generator(device: torch.device) -> torch.Generator:
    """A generator seeded by the operating system."""
    return torch.Generator(device).manual_seed(secrets.randbits(63))


def adapted(model: PreTrainedModel, rank: int, seed: int) -> Any:
    """`model` with a LoRA of `rank` on every linear layer but the head, nothing else trainable, no dropout anywhere."""
    from peft import LoraConfig, get_peft_model

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def document_losses(model: Any, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy [B] of each document over its own tokens; prompts and fillers do not count."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.float()
    targets_BT = labels_BT[:, 1:]
    nats_BT = functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED, reduction="none")
    return nats_BT.sum(1) / (targets_BT != IGNORED).sum(1).clamp(min=1)


def train_privately(
    model: Any, examples: Examples, plan: Plan, progress: Progress, stopping: Callable[[], bool] = lambda: False
) -> list[tuple[float, float, int]]:
    """Train the adapter of `model` in place; the steps as Opacus counted them: noise multiplier, rate, how many.

    Raises StoppedError when asked to stop; there is no half-trained state to go on from, for it would be counted twice.
    """
    from opacus.utils.batch_memory_manager import BatchMemoryManager

    with warnings.catch_warnings():
        # Opacus recommends a random generator that its own dependency stopped building; hooks warn of frozen inputs.
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        engine, wrapped, optimiser, loader = _private(model, examples, plan)
        history = engine.accountant.history  # its length is not the number of steps: equal ones are one entry
        while _num_steps(history) < plan.steps:
            with BatchMemoryManager(
                data_loader=loader, max_physical_batch_size=plan.micro_batch, optimizer=optimiser
            ) as batches:
                for batch in batches:
                    _step(wrapped, optimiser, batch)
                    progress(_num_steps(history), plan.steps, "steps")
                    if stopping():
                        raise StoppedError("stopped; private training starts anew, since no state of it is kept")
                    if _num_steps(history) == plan.steps:
                        break
        wrapped.to_standard_module()
    return list(history)


def _num_steps(history: Sequence[tuple[float, float, int]]) -> int:
    return sum(steps for _, _, steps in history)


def _private(model: Any, examples: Examples, plan: Plan) -> tuple[Any, Any, Any, Any]:
    """Opacus' engine, and the model, optimiser and loader that it made private."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=0.0)
    data = TensorDataset(examples.ids, examples.labels)
    loader = DataLoader(data, batch_size=plan.batch_documents, generator=secret_generator(torch.device("cpu")))
    engine = PrivacyEngine(accountant="prv")
    made = engine.make_private(
        module=model.train(),
        optimizer=optimiser,
        data_loader=loader,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clip,
        poisson_sampling=True,
        loss_reduction="sum",
        noise_generator=secret_generator(device),
    )
    return engine, *made


def _step(wrapped: Any, optimiser: Any, batch: Sequence[Tensor]) -> None:
    """One physical batch: gradients a document, clipped and added up; noise and update when the logical batch ends."""
    ids_BT, labels_BT = (each.to(next(wrapped.parameters()).device) for each in batch)
    if len(ids_BT):
        document_losses(wrapped, ids_BT, labels_BT).sum().backward()
    else:  # Poisson sampling drew nobody: the step has noise all the same
        for parameter in optimiser.params:
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
    optimiser.step()
    optimiser.zero_grad()


def sample(
    model: PreTrainedModel, prompts: Sequence[Prompt], count: int, length: int, end: int, batch: int, seed: int
) -> Iterator[tuple[Prompt, list[list[int]]]]:
    """`count` documents behind `prompts` in turn, at temperature 1 from the whole distribution: prompt and token ids.

    Reads no private document: what comes out is post-processing of the private model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, prompt in enumerate(prompts):
            left = count // len(prompts) + (number < count % len(prompts))
            while left:
                size = min(batch, left)
                given_BT = torch.tensor([prompt.ids] * size, device=model.device)
                room = length - len(prompt.ids)
                out_BT = written(model, given_BT, room, end, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
                yield prompt, [_until(row[len(prompt.ids) :], end) for row in out_BT.tolist()]
                left -= size


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
