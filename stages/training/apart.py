"""Whether a model keeps the documents of a window apart when positions start again at each: found out by asking it."""

from __future__ import annotations

from typing import Final

import torch
from transformers import PreTrainedModel

from stages.errors import UserError

LENGTH: Final = 16
"""Tokens of each of the two documents tried."""
LEAK: Final = 0.05
"""Share of what attention to the whole window changes, from which it counts: rounding in bf16 stays below."""


@torch.no_grad()
def require_apart(model: PreTrainedModel, fix: str = "prepare the data with attention: window") -> None:
    """Raise UserError unless the second of two documents gets the logits that it gets alone.

    `transformers` builds block-diagonal attention from positions that start again; a recurrent layer, or code that
    makes its own mask, carries the first document over. What that would change is measured beside it.
    """
    vocabulary, was_training = model.config.get_text_config().vocab_size, model.training
    ids_1T = torch.randint(vocabulary, (1, 2 * LENGTH), generator=torch.Generator().manual_seed(0))
    places_T = torch.arange(2 * LENGTH)
    model.eval()
    alone = model(input_ids=ids_1T[:, LENGTH:], use_cache=False).logits.float()
    apart, joined = (
        model(input_ids=ids_1T, position_ids=places_1T, use_cache=False).logits[:, LENGTH:].float()
        for places_1T in ((places_T % LENGTH)[None], places_T[None])
    )
    model.train(was_training)
    leak, most = (apart - alone).abs().max().item(), (joined - alone).abs().max().item()
    if leak > LEAK * most:
        raise UserError(
            f"{type(model).__name__} lets the documents of a window see each other: the second one's logits are off by "
            f"{leak:.2g}, of {most:.2g} when nothing keeps them apart",
            fix=fix,
        )
