"""What a worker does to train a proxy: next-token prediction from random weights, measured on held-out domains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from grafts.loader import load_model, save_model
from stages.artifacts import Dataset, Model
from stages.data.windows import TokenWindows
from stages.evaluate.matching import text_config
from stages.proxy.precision import require_float32_masters
from stages.proxy.settings import ProxyParameters
from stages.proxy.sizes import is_counted
from stages.training.cross_entropy import cross_entropy
from stages.training.recipe import Batch, Loss, Worker
from stages.training.windows import WindowRecipe


def new_llama(params: ProxyParameters, source: Model, max_positions: int, seed: int) -> LlamaForCausalLM:
    """A Llama of the shape in `params` with random float32 weights, a function of `seed`, and the ids of `source`."""
    given = text_config(source.config)
    special = {name: given.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=given["vocab_size"],
        hidden_size=params.hidden_size,
        intermediate_size=params.ffn_size,
        num_hidden_layers=params.num_layers,
        num_attention_heads=params.num_heads,
        num_key_value_heads=params.num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=params.tie_embeddings,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def spread(windows: TokenWindows, limit: int) -> Tensor:
    """At most `limit` of the windows [N, T], evenly spaced: the first ones might all be of one long document."""
    return windows.stack(np.linspace(0, len(windows) - 1, min(limit, len(windows))).round().astype(int).tolist())


def non_embedding_parameters(model: nn.Module) -> int:
    """Parameters outside the embeddings, shared ones once."""
    return sum(p.numel() for name, p in model.named_parameters() if is_counted(name, p.shape))


@dataclass
class ProxyTraining(WindowRecipe):
    """Train a proxy on `data` for `num_steps`, measured on each of `validation` meanwhile."""

    params: ProxyParameters
    model: Model
    data: Dataset
    validation: Sequence[Dataset]
    seed: int
    cache: Path
    num_steps: int
    results: Path
    """Where the losses of the evaluations are kept, so that a resumed run has them all."""
    out: Path | None
    """Where the trained model goes, if anywhere."""
    _worker: Worker | None = field(default=None, repr=False)
    _windows: TokenWindows | None = field(default=None, repr=False)
    _held: list[Tensor] = field(default_factory=list, repr=False)
    _checked: bool = field(default=False, repr=False)

    def prepare(self, worker: Worker) -> None:
        """Map the data and read the held-out windows [N, T] of each domain."""
        self._worker, self._windows = worker, TokenWindows(self.data, self.cache)
        limit = self.params.validation_windows
        self._held = [spread(TokenWindows(each, self.cache), limit) for each in self.validation]

    @property
    def windows(self) -> TokenWindows:
        """The training data."""
        assert self._windows is not None, "the loop calls `prepare` first"
        return self._windows

    @property
    def worker(self) -> Worker:
        """Where this runs."""
        assert self._worker is not None, "the loop calls `prepare` first"
        return self._worker

    def build(self) -> nn.Module:
        """The proxy before its first step."""
        if self.params.start == "model":
            return load_model(self.model.path, dtype=self.worker.dtype)
        length = max(self.windows.sequence_length, *(each.shape[1] for each in self._held))
        model = new_llama(self.params, self.model, length, self.seed)
        for parameter in model.parameters():  # not `.to`, which would round the rotary frequencies too
            parameter.data = parameter.data.to(self.worker.dtype)
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over the T - 1 positions of each window that have a next token."""
        if not self._checked and hasattr(model, "optimizer"):
            require_float32_masters(model.optimizer)
            self._checked = True
        ids_BT = batch.tensors["ids_BT"]
        logits_PV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
        return Loss(cross_entropy(logits_PV, ids_BT[:, 1:].flatten()))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out loss of each domain, remembered with the step it belongs to."""
        losses = self._losses(model)
        if self.worker.rank == 0:
            self._remember(int(model.global_steps), losses)
        return {f"validation_{number}": loss for number, loss in enumerate(losses)}

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Save the proxy; its size, and the losses of each domain before the first step and after the last."""
        assert isinstance(model, PreTrainedModel), f"expected a PreTrainedModel, got {type(model).__name__}"
        if self.out is not None:
            save_model(model, self.out, tokenizer_from=self.model.path, dtype=self.worker.stored)
        untrained = self.build().to(self.worker.device).eval()
        figures = {f"initial_{number}": loss for number, loss in enumerate(self._losses(untrained))}
        final = self._remembered().get(str(self.num_steps)) or self._losses(model)
        figures |= {f"final_{number}": loss for number, loss in enumerate(final)}
        size = non_embedding_parameters(model)
        return {**figures, "parameters": model.num_parameters(), "non_embedding_parameters": size}

    def curve(self) -> dict[int, list[float]]:
        """Loss of each domain at every evaluation, by step."""
        return {int(step): losses for step, losses in self._remembered().items()}

    def _remember(self, step: int, losses: list[float]) -> None:
        self.results.parent.mkdir(parents=True, exist_ok=True)
        part = self.results.with_suffix(".part")
        part.write_text(json.dumps({**self._remembered(), str(step): losses}), encoding="utf-8")
        part.replace(self.results)

    def _remembered(self) -> dict[str, list[float]]:
        return json.loads(self.results.read_text(encoding="utf-8")) if self.results.exists() else {}

    def _losses(self, model: nn.Module) -> list[float]:
        """Mean cross-entropy in nats a token of each domain."""
        return [self.mean_losses(model, held_NT, self.params.micro_batch)["loss"] for held_NT in self._held]
