"""Sources made on the spot, for `regraft run --smoke` and for trying things out: `generated:llama`, `generated:text`,
`generated:trajectories`.

Each is a pure function of its seed, needs no network, and takes well under a second.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

from stages.errors import UserError

GENERATED_MODEL: Final = "generated:llama"
"""A random Llama of two narrow layers, with a byte-level tokenizer and a chat template."""
GENERATED_TEXT: Final = "generated:text"
"""Documents of English-looking sentences with a learnable grammar."""
GENERATED_TRAJECTORIES: Final = "generated:trajectories"
"""Conversations in which a word of a sentence is asked for and given, in the format of agents."""
SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ADJECTIVES: Final = (
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
_NOUNS: Final = (
    "river",
    "teacher",
    "engine",
    "garden",
    "letter",
    "city",
    "winter",
    "mountain",
    "student",
    "machine",
    "model",
)
_VERBS: Final = (
    "follows",
    "carries",
    "remembers",
    "builds",
    "crosses",
    "answers",
    "watches",
    "finds",
    "measures",
    "keeps",
)
_PLACES: Final = (
    "in the morning",
    "near the station",
    "after the storm",
    "beyond the hills",
    "without a word",
)


def is_generated(text: str, offered: str) -> bool:
    """Whether a source is `offered`, the generated one of its kind. Raises UserError for another `generated:` name."""
    if text.startswith("generated:") and text != offered:
        raise UserError(f"nothing is generated under {text!r}", fix=f"write {offered}")
    return text == offered


def generated_text(num_documents: int = 64, seed: int = 0) -> list[str]:
    """Documents of 6 to 14 sentences."""
    rng = random.Random(seed)
    return [generated_document(rng) for _ in range(num_documents)]


def generated_trajectories(num_conversations: int = 32, seed: int = 0) -> list[dict[str, Any]]:
    """Records as `source.trajectories` reads them, all of them right."""
    rng = random.Random(seed)
    return [_generated_conversation(rng) for _ in range(num_conversations)]


def generated_document(rng: random.Random) -> str:
    """One document of 6 to 14 sentences."""
    return " ".join(_sentence(rng) for _ in range(rng.randint(6, 14)))


def generated_tokenizer(directory: Path, *, vocab_size: int = 384) -> Path:
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
    tokenizer.train_from_iterator(generated_text(64, seed=0), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[2],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
    return directory


def generated_model(
    directory: Path,
    *,
    vocab_size: int = 384,
    num_layers: int = 2,
    hidden: int = 32,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    max_positions: int = 2048,
    tie_embeddings: bool = True,
    seed: int = 0,
) -> Path:
    """Save a random LlamaForCausalLM (float32) with `generated_tokenizer` beside it; returns `directory`."""
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
    return generated_tokenizer(directory, vocab_size=vocab_size)


def _generated_conversation(rng: random.Random) -> dict[str, Any]:
    sentence = _sentence(rng)
    answer = sentence.split()[1]
    turn = f"<think>The second word is {answer}.</think>\n<answer>{answer}</answer>"
    said = {"system": "Answer in one word.", "user": f"Which word comes second? {sentence}", "assistant": turn}
    messages = [{"role": role, "content": content} for role, content in said.items()]
    return {"messages": messages, "answers": [answer], "reward": 1.0, "kind": "generated"}


def _sentence(rng: random.Random) -> str:
    subject, other = rng.sample(_NOUNS, 2)
    words = f"The {rng.choice(_ADJECTIVES)} {subject} {rng.choice(_VERBS)} the {rng.choice(_ADJECTIVES)} {other}"
    return f"{words} {rng.choice(_PLACES)}." if rng.random() < 0.5 else f"{words}."
