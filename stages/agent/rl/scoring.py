"""How likely the true answer is after each turn: the score that information gain is a difference of (IGPO, 2510.14967).

The answer, in the form that the policy would give it, is put behind every prefix of a trajectory, and its tokens are
read with teacher forcing. `score` reads all prefixes in one pass: the trajectory once, then a copy of the answer for
each prefix, which sees that prefix and itself. `score_apart` reads one prefix after another and is the reference, and
what models other than plain full attention fall back to.

What is read here never enters a cache that the policy writes from: the answer would leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.agent.conversation.messages import write_turn
from stages.agent.conversation.rendering import Renderer
from stages.evaluate.distance import evaluating

PLAIN_ATTENTION: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models that honour a mask of one's own in every layer."""


@dataclass(frozen=True)
class Answer:
    """Token ids of a turn that gives the answer, up to the answer's end; ids from `first` on are the answer itself."""

    ids: list[int]
    first: int

    @classmethod
    def of(cls, renderer: Renderer, answer: str, thought: str) -> Answer:
        """The turn encoded as a whole, after `thought`; a token with any character of the answer belongs to it."""
        content = write_turn(thought, answer)
        start = content.rindex(answer, 0, content.rindex("</answer>"))
        encoding = renderer.text.encode(content, add_special_tokens=False)
        inside = [
            number
            for number, (begin, end) in enumerate(encoding.offsets)
            if begin < start + len(answer) and end > start
        ]
        return cls(encoding.ids[: inside[-1] + 1], inside[0])

    @property
    def num_scored(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.first


def score(model: PreTrainedModel, ids: Sequence[int], ends: Sequence[int], answer: Answer) -> Tensor:
    """Mean log-probability [S], nats a token, of the answer after each prefix `ids[:end]`; no gradient.

    `ends` rise. In one pass where the model's attention allows it, else prefix by prefix.
    """
    if not ends:
        return torch.zeros(0)
    return (score_at_once if reads_masks(model) else score_apart)(model, ids, ends, answer)


@torch.no_grad()
def score_apart(model: PreTrainedModel, ids: Sequence[int], ends: Sequence[int], answer: Answer) -> Tensor:
    """The reference for `score_at_once`: a forward pass for each prefix."""
    scores = []
    with evaluating(model):
        for end in ends:
            whole = torch.tensor([[*ids[:end], *answer.ids]], device=model.device)
            logits = model(input_ids=whole[:, :-1], use_cache=False, logits_to_keep=answer.num_scored).logits[0]
            scores.append(_mean_log_prob(logits, whole[0, -answer.num_scored :]))
    return torch.stack(scores)


@torch.no_grad()
def score_at_once(model: PreTrainedModel, ids: Sequence[int], ends: Sequence[int], answer: Answer) -> Tensor:
    """`score` in one forward pass; for models that `reads_masks`."""
    num_read, length = ends[-1], len(answer.ids)
    whole = torch.tensor([[*ids[:num_read], *(answer.ids * len(ends))]], device=model.device)
    ends_S = torch.tensor(ends, device=model.device)
    before_A = torch.arange(answer.first - 1, length - 1, device=model.device)
    copies_S = num_read + length * torch.arange(len(ends), device=model.device)
    with evaluating(model):
        logits = model(
            input_ids=whole,
            attention_mask=_mask(num_read, ends_S, length, model.dtype),
            position_ids=_positions(num_read, ends_S, length),
            use_cache=False,
            logits_to_keep=(copies_S.unsqueeze(1) + before_A).flatten(),
        ).logits[0]
    targets_A = torch.tensor(answer.ids[answer.first :], device=model.device)
    return torch.stack([_mean_log_prob(part, targets_A) for part in logits.split(answer.num_scored)])


def reads_masks(model: PreTrainedModel) -> bool:
    """Whether every layer of `model` is full attention that takes a mask of one's own."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = config.model_type in PLAIN_ATTENTION and kinds == {"full_attention"}
    windowed = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return plain and not windowed and config._attn_implementation in ("sdpa", "eager")


def _mask(num_read: int, ends_S: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """What each token may see, [1, 1, R + S A, R + S A], 0 where it may and very low where it may not."""
    num_all, device = num_read + len(ends_S) * length, ends_S.device
    place = torch.arange(num_all, device=device)
    copy = (place - num_read).div(length, rounding_mode="floor").clamp(min=-1)
    end = torch.cat([torch.full((num_read,), num_all, device=device), ends_S.repeat_interleave(length)])
    causal = place.unsqueeze(0) <= place.unsqueeze(1)
    of_prefix = (copy.unsqueeze(0) < 0) & (place.unsqueeze(0) < end.unsqueeze(1))
    visible = causal & (of_prefix | (copy.unsqueeze(0) == copy.unsqueeze(1)))
    return torch.zeros(num_all, num_all, dtype=dtype, device=device).masked_fill(~visible, torch.finfo(dtype).min)[
        None, None
    ]


def _positions(num_read: int, ends_S: Tensor, length: int) -> Tensor:
    """Position of each token, [1, R + S A]: a copy goes on where its prefix ends."""
    read = torch.arange(num_read, device=ends_S.device)
    copies = ends_S.unsqueeze(1) + torch.arange(length, device=ends_S.device)
    return torch.cat([read, copies.flatten()]).unsqueeze(0)


def _mean_log_prob(logits_AV: Tensor, targets_A: Tensor) -> Tensor:
    return logits_AV.float().log_softmax(-1).gather(1, targets_A.unsqueeze(1)).mean()
