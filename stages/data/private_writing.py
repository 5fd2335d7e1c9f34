"""From private documents to a trained model, and from that model to synthetic documents: apart, on purpose.

`write` gets nothing that holds a private document: what it writes is a function of the private model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from stages.artifacts import DatasetCard
from stages.data.private_examples import Prompt, encode, make_prompts, read_rows
from stages.data.private_training import Plan, adapted, sample, train_privately
from stages.data.tokenizer import open_tokenizer
from stages.errors import UserError
from stages.evaluate.loading import load_for_evaluation
from stages.evaluate.matching import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.data.synthesize_private import SynthesizePrivateParameters
    from stages.stage import Context


@dataclass(frozen=True)
class Learnt:
    """The private model with its adapter merged, what it is asked with, and what it took."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    end: int
    history: Sequence[tuple[float, float, int]]
    """The noisy steps that it took, as Opacus counted them."""


def learn(params: SynthesizePrivateParameters, plan: Plan, context: Context) -> Learnt:
    """Train an adapter on input `private`."""
    source, data = context.model("model"), context.dataset("private")
    tokenizer = open_tokenizer(source.path)
    end = _end_token(source.config)
    prompts = make_prompts(tokenizer, end, params.prompt, params.labels)
    longest = max(len(prompt.ids) for prompt in prompts)
    if longest >= params.sequence_length:
        raise UserError(
            f"a prompt takes {longest} of {params.sequence_length} tokens, which leaves none for a document",
            fix="shorten `prompt`, or raise `sequence_length`",
        )
    rows = read_rows(data, params.label_field, params.labels)
    examples = encode(tokenizer, rows, prompts, params.sequence_length, end)
    model = adapted(load_for_evaluation(source, "float32"), params.rank, context.seed)
    history = train_privately(model, examples, plan, context.progress, context.stopping)
    return Learnt(model.merge_and_unload().eval(), tokenizer, prompts, end, history)


def write(learnt: Learnt, params: SynthesizePrivateParameters, context: Context) -> dict[str, float]:
    """Sample documents into output `dataset`; how many there are, and their bytes."""
    texts, labels = [], []
    drawn = sample(
        learnt.model,
        learnt.prompts,
        params.documents,
        params.sequence_length,
        learnt.end,
        params.micro_batch,
        context.seed,
    )
    for prompt, documents in drawn:
        texts += [learnt.tokenizer.decode(ids) for ids in documents]
        labels += [prompt.label] * len(documents)
        context.progress(len(texts), params.documents, "documents")
    columns: dict[str, Any] = {"text": pa.array(texts, pa.string())}
    if params.label_field is not None:
        columns[params.label_field] = pa.array(labels, pa.string())
    out = context.output("dataset")
    pq.write_table(pa.table(columns), out / "shard-00000.parquet", compression="zstd")
    num_bytes = sum(len(text.encode()) for text in texts)
    DatasetCard("text", num_rows=len(texts), num_bytes=num_bytes, source="synthetic").write(out)
    return {"documents": len(texts), "bytes": num_bytes}


def _end_token(config: dict[str, Any]) -> int:
    """The token that opens and closes a document."""
    found = text_config(config).get("eos_token_id")
    end = found[0] if isinstance(found, list) else found
    if end is None:
        raise UserError("the model's config names no eos_token_id", where="model", fix="set it in config.json")
    return int(end)
