"""How well a model recalls the answers of probes: by their log-likelihood, and by what it writes itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.evaluate.generation import written
from stages.evaluate.needles import Probe
from stages.evaluate.needles_text import Pieces
from stages.evaluate.precision import gives_nan
from stages.evaluate.prediction import Predictor


@dataclass(frozen=True)
class Recall:
    """What a model recalls of one probe."""

    nats: float
    """Negative log-likelihood of all answer tokens, each given the true tokens before it."""
    num_tokens: int
    hits: tuple[bool, ...]
    """For each answer, whether all its tokens are the model's first choice."""
    generated: float | None = None
    """Share of the answers found in the text the model writes, RULER's own measure; None where none was written."""


def recall(predictor: Predictor, probes: Sequence[Probe]) -> list[Recall]:
    """Score `probes` of one length in one forward pass, in float32. Raises UserError when a logit is not a number."""
    ids_BT = torch.tensor([probe.ids for probe in probes])
    prediction = predictor.predict(ids_BT)
    width = ids_BT.shape[1] - 1
    found = []
    for row, probe in enumerate(probes):
        # the logits at position t - 1 predict token t, and the answers are the tail of the sequence
        logits_AV = prediction.read(row * width + probe.prompt_length - 1, (row + 1) * width)
        found.append(_recall(logits_AV.float(), ids_BT[row, probe.prompt_length :].to(logits_AV.device), probe))
    return found


def generate(
    model: PreTrainedModel, pieces: Pieces, probes: Sequence[Probe], found: Sequence[Recall], batch_size: int
) -> Iterator[tuple[int, Recall]]:
    """`found` with what the model writes greedily after each prompt, with the place of each in `probes`.

    At most twice the answers' tokens are written, and no more than the model's context holds.
    """
    order = sorted(range(len(probes)), key=lambda place: (probes[place].prompt_length, place))
    for length, places in groupby(order, key=lambda place: probes[place].prompt_length):
        same = list(places)
        for start in range(0, len(same), batch_size):
            part = same[start : start + batch_size]
            texts = _continuations(model, pieces, [probes[place] for place in part], length)
            for place, text in zip(part, texts, strict=True):
                values = [answer.value for answer in probes[place].answers]
                share = sum(value in text for value in values) / len(values)
                yield place, replace(found[place], generated=share)


def _recall(logits_AV: Tensor, targets_A: Tensor, probe: Probe) -> Recall:
    log_AV = logits_AV.log_softmax(-1)
    nats_A = -log_AV.gather(-1, targets_A[:, None]).squeeze(-1)
    if torch.isnan(nats_A).any():
        raise gives_nan(f"the model gives NaN for an answer after {probe.prompt_length} tokens")
    first_A = log_AV.argmax(-1) == targets_A
    spans = [slice(*(place - probe.prompt_length for place in answer.span)) for answer in probe.answers]
    return Recall(
        nats=sum(nats_A[span].double().sum().item() for span in spans),
        num_tokens=sum(nats_A[span].numel() for span in spans),
        hits=tuple(bool(first_A[span].all()) for span in spans),
    )


def _continuations(model: PreTrainedModel, pieces: Pieces, probes: list[Probe], length: int) -> list[str]:
    ids_BT = torch.tensor([probe.ids[:length] for probe in probes], device=model.device)
    answer = max(len(probe.ids) - length for probe in probes)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    most = min(2 * answer, limit - length) if limit else 2 * answer
    end = model.generation_config.eos_token_id if model.generation_config else None
    out_BT = written(model, ids_BT, most, end, do_sample=False)
    return [pieces.decode(row[length:].tolist()) for row in out_BT]
