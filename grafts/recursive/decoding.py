"""Greedy decoding that lets each token leave after the loop that is sure of it.

Continuous depth-wise batching (Relaxed Recursive Transformers, arXiv 2410.20672): every loop has the same weights, so
a token in its first loop and one in its last go through the block together, and no row waits for another. A token
that leaves early gives the loops that it skips the keys and values of the hidden state it left with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grafts.recursive.core import Core
from grafts.recursive.exits import exit_logits
from grafts.recursive.graft import Recursive
from grafts.recursive.rows import Cache, Layer, Rows

ExitRule = Callable[[Tensor], Tensor]
"""Logits [N, V] after a loop that is not the last → whether each row leaves, [N]."""


def confident(probability: float) -> ExitRule:
    """Leave when the likeliest token has at least this probability."""

    def leaves(logits_NV: Tensor) -> Tensor:
        return logits_NV.float().softmax(-1).amax(-1) >= probability

    return leaves


@dataclass
class Decoded:
    """What was decoded after one prompt."""

    tokens: list[int] = field(default_factory=list)
    loops: list[int] = field(default_factory=list)
    """Loops that were run for each token."""


@dataclass
class _Sequence:
    request: int
    token: int
    position: int
    loop: int = 0
    hidden: Tensor | None = None
    """[1, D], after the loops that have run."""


class DepthwiseDecoder:
    """Decodes with a recursive model (graft `recursive`, order `cycle`), `num_rows` sequences at a time.

    Without `leaves` every token runs all loops and the result is that of greedy `generate`. `max_length` counts the
    tokens of the longest prompt and what is decoded after it. Low-rank differences are those that the model had when
    the decoder was made. ValueError for a model that is not recursive, or no rows.
    """

    def __init__(
        self, model: PreTrainedModel, *, num_rows: int, max_length: int, leaves: ExitRule | None = None
    ) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}: at least one sequence has to be decoded at a time")
        self.model, self.leaves, self.core = model.eval(), leaves, _core(model)
        self.num_rows = num_rows
        self.cache = Cache(num_rows, max_length)
        core, last = self.core, model.config.num_hidden_layers
        self.begin = [Layer(model, [layer], self.cache) for layer in range(core.begin)]
        self.block = [Layer(model, list(core.runs(owner)), self.cache) for owner in core.owners]
        self.end = [Layer(model, [layer], self.cache) for layer in range(last - core.end, last)]

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[int] = ()
    ) -> list[Decoded]:
        """The tokens after each prompt, up to `max_new_tokens` or the first of `stop`, which is among them.

        ValueError for an empty prompt, or one for which `max_length` is too short.
        """
        self._require_room(prompts, max_new_tokens)
        done = [Decoded() for _ in prompts]
        waiting, slots = deque(range(len(prompts) if max_new_tokens else 0)), dict[int, _Sequence]()
        while waiting or slots:
            for slot in set(range(self.num_rows)) - set(slots):
                if waiting:
                    slots[slot] = self._admit(slot, waiting[0], prompts[waiting.popleft()])
            for slot, token in self._step(slots):
                sequence = slots[slot]
                found = done[sequence.request]
                found.tokens.append(token)
                found.loops.append(sequence.loop)
                sequence.token, sequence.position, sequence.loop = token, sequence.position + 1, 0
                if token in stop or len(found.tokens) == max_new_tokens:
                    del slots[slot]
        return done

    def _require_room(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        for number, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {number} is empty: it needs one token at least")
            needed = len(prompt) + max_new_tokens
            if needed > self.cache.max_length:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens, {needed} with those to come: "
                    f"max_length is {self.cache.max_length}"
                )

    def _admit(self, slot: int, request: int, prompt: Sequence[int]) -> _Sequence:
        """Read all of the prompt but its last token, which is decoded from."""
        length = len(prompt) - 1
        if length:
            ids_1T = torch.tensor([prompt[:-1]], device=self.model.device)
            read = self.model(input_ids=ids_1T, use_cache=True, logits_to_keep=1).past_key_values
            for layer, kept in enumerate(read.layers):
                self.cache.fill(slot, layer, kept.keys, kept.values, length)
        return _Sequence(request, prompt[-1], length)

    def _step(self, slots: dict[int, _Sequence]) -> list[tuple[int, int]]:
        """One loop of every sequence; the slots that have got a token, with it."""
        self._begin({slot: sequence for slot, sequence in slots.items() if sequence.loop == 0})
        self._run(self.block, slots)
        for sequence in slots.values():
            sequence.loop += 1
        through = {slot: one for slot, one in slots.items() if self._is_through(one)}
        self._run(self.end, through)
        asked = slots if self.leaves else through
        return self._tokens(asked) if asked else []

    def _is_through(self, sequence: _Sequence) -> bool:
        return sequence.loop == self.core.loops

    def _begin(self, slots: dict[int, _Sequence]) -> None:
        if not slots:
            return
        tokens_N1 = torch.tensor([[sequence.token] for sequence in slots.values()], device=self.model.device)
        for sequence, hidden_1D in zip(slots.values(), self.model.model.embed_tokens(tokens_N1), strict=True):
            sequence.hidden = hidden_1D
        self._run(self.begin, slots)

    def _tokens(self, slots: dict[int, _Sequence]) -> list[tuple[int, int]]:
        """Of those that are through or sure already, the tokens: the head reads its weights once for both."""
        logits_NV = exit_logits(self.model, _hidden(slots))[:, 0]
        through = torch.tensor([self._is_through(one) for one in slots.values()], device=logits_NV.device)
        leaving = torch.zeros_like(through)
        if self.leaves and not through.all():
            leaving[~through] = self.leaves(logits_NV[~through])
        named = list(
            zip(slots, leaving.tolist(), (through | leaving).tolist(), logits_NV.argmax(-1).tolist(), strict=True)
        )
        self._pass_by({slot: slots[slot] for slot, leaves, _, _ in named if leaves})
        return [(slot, token) for slot, _, done, token in named if done]

    def _pass_by(self, slots: dict[int, _Sequence]) -> None:
        """Give the layers that are skipped their keys and values."""
        skipped = [(slot, one, loop) for slot, one in slots.items() for loop in range(one.loop, self.core.loops)]
        if skipped:
            hidden_N1D = torch.stack([one.hidden for _, one, _ in skipped])
            rows = self._rows([(slot, loop, one.position) for slot, one, loop in skipped])
            for layer in self.block:
                layer.pass_by(hidden_N1D, rows)
            rows = self._rows([(slot, 0, one.position) for slot, one in slots.items()])
            for layer in self.end:
                layer.pass_by(_hidden(slots), rows)

    def _run(self, layers: Sequence[Layer], slots: dict[int, _Sequence]) -> None:
        if not (layers and slots):
            return
        looped = layers is self.block
        rows = self._rows([(slot, one.loop if looped else 0, one.position) for slot, one in slots.items()])
        hidden_N1D = _hidden(slots)
        for layer in layers:
            hidden_N1D = layer(hidden_N1D, rows)
        for sequence, hidden_1D in zip(slots.values(), hidden_N1D, strict=True):
            sequence.hidden = hidden_1D

    def _rows(self, rows: Sequence[tuple[int, int, int]]) -> Rows:
        return Rows(*torch.tensor(rows, device=self.model.device).unbind(1))


def _hidden(slots: dict[int, _Sequence]) -> Tensor:
    return torch.stack([one.hidden for one in slots.values() if one.hidden is not None])


def _core(model: PreTrainedModel) -> Core:
    grafts = getattr(model.config, "grafts", ())
    if [graft.name for graft in grafts] != [Recursive.name]:
        found = ", ".join(graft.name for graft in grafts) or "none"
        raise ValueError(f"depth-wise decoding is for models with the graft 'recursive' alone; this one has: {found}")
    core = grafts[0].core(model.config)
    if core.order != "cycle":
        raise ValueError(f"depth-wise decoding needs whole loops (order: cycle), this model has order: {core.order}")
    return core
