"""Things small enough for tests, made on the spot: text, a tokenizer, a Llama of two layers, packed tokens.

Everything is a pure function of its seed, offline, and takes well under a second.
"""

from __future__ import annotations

import random
from pathlib import Path

from stages.artifacts import Dataset, DatasetCard, tokenizer_fingerprint

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_ADJECTIVES = (
    "old",
    "small",
    "quiet",
    "bright",
    "heavy",
    "narrow",
    "distant",
    "warm",
    "broken",
    "green",
    "late",
    "patient",
)
_NOUNS = ("river", "teacher", "engine", "garden", "letter", "city", "winter", "mountain", "student", "machine", "model")
_VERBS = ("follows", "carries", "remembers", "builds", "crosses", "answers", "watches", "finds", "measures", "keeps")
_PLACES = ("in the morning", "near the station", "after the storm", "beyond the hills", "without a word")


def tiny_text(n_documents: int = 64, seed: int = 0) -> list[str]:
    """Documents of 6 to 14 English-looking sentences with a learnable grammar."""
    rng = random.Random(seed)
    return [_document(rng) for _ in range(n_documents)]


def tiny_tokenizer(directory: Path, *, vocab_size: int = 384) -> Path:
    """Save a byte-level BPE tokenizer with special tokens and a chat template; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_text(64, seed=0), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[2],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
    return directory


def tiny_model(
    directory: Path,
    *,
    vocab_size: int = 384,
    num_layers: int = 2,
    hidden: int = 32,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    max_positions: int = 256,
    tie_embeddings: bool = True,
    seed: int = 0,
) -> Path:
    """Save a random LlamaForCausalLM (float32) with `tiny_tokenizer` beside it; returns `directory`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tie_embeddings,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory)
    return tiny_tokenizer(directory, vocab_size=vocab_size)


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
        ids += [0, *encoder.encode(_document(rng)).ids]
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


def _document(rng: random.Random) -> str:
    return " ".join(_sentence(rng) for _ in range(rng.randint(6, 14)))


def _sentence(rng: random.Random) -> str:
    subject, other = rng.sample(_NOUNS, 2)
    words = f"The {rng.choice(_ADJECTIVES)} {subject} {rng.choice(_VERBS)} the {rng.choice(_ADJECTIVES)} {other}"
    return f"{words} {rng.choice(_PLACES)}." if rng.random() < 0.5 else f"{words}."
