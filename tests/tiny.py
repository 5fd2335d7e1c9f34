"""Things small enough for tests, made on the spot: text, a tokenizer, a Llama of two layers, packed tokens.

Everything is a pure function of its seed, offline, and takes well under a second.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from stages.artifacts import Dataset, DatasetCard, tokenizer_fingerprint
from stages.source.generated import generated_document, generated_model, generated_text, generated_tokenizer


def tiny_text(n_documents: int = 64, seed: int = 0) -> list[str]:
    """Documents of 6 to 14 English-looking sentences with a learnable grammar."""
    return generated_text(n_documents, seed)


def tiny_tokenizer(directory: Path, *, vocab_size: int = 384) -> Path:
    """Save a byte-level BPE tokenizer with special tokens and a chat template; any text round-trips."""
    return generated_tokenizer(directory, vocab_size=vocab_size)


def tiny_model(directory: Path, *, max_positions: int = 256, **options: Any) -> Path:
    """Save a random LlamaForCausalLM (float32) with its tokenizer; `options` as for `generated_model`."""
    return generated_model(directory, max_positions=max_positions, **options)


def text_dataset(directory: Path, n_documents: int = 64, *, seed: int = 0) -> Dataset:
    """Write a `text` dataset of `tiny_text`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = tiny_text(n_documents, seed)
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), directory / "shard-00000.parquet")
    num_bytes = sum(len(text.encode()) for text in texts)
    DatasetCard("text", num_rows=len(texts), num_bytes=num_bytes, licence="CC0-1.0").write(directory)
    return Dataset(directory)


def tokens_dataset(
    directory: Path, tokenizer: Path, *, num_windows: int = 16, sequence_length: int = 32, seed: int = 0
) -> Dataset:
    """Write a packed `tokens` dataset of `tiny_text` in the ids of the tokenizer in the directory `tokenizer`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    encoder, rng = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), random.Random(seed)
    ids: list[int] = []
    while len(ids) < num_windows * sequence_length:
        ids += [0, *encoder.encode(generated_document(rng)).ids]
    rows = [ids[start : start + sequence_length] for start in range(0, num_windows * sequence_length, sequence_length)]
    directory.mkdir(parents=True, exist_ok=True)
    table = pa.table({"input_ids": pa.array(rows, type=pa.list_(pa.int32()))})
    pq.write_table(table, directory / "shard-00000.parquet")
    DatasetCard(
        "tokens",
        num_rows=num_windows,
        num_bytes=len(encoder.decode(ids[: num_windows * sequence_length]).encode()),
        num_tokens=num_windows * sequence_length,
        sequence_length=sequence_length,
        tokenizer=tokenizer_fingerprint(tokenizer / "tokenizer.json"),
    ).write(directory)
    return Dataset(directory)
