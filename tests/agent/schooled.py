"""A tiny agent that has been to school: it visits the room a question names and says what it saw there, or guesses.

Rooms are the documents of a collection, each with a word in it. The pupil learnt from teachers who visit, and from
those who guess without looking, so that reinforcement has something to choose between. Its tokenizer has whole words
for all that is ever said, so that conversations are short.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from grafts.loader import save_model
from stages.agent.conversation.messages import Message, ToolCall, parse_turn, write_turn
from stages.agent.conversation.records import write_documents, write_tasks
from stages.agent.conversation.rendering import Encoded, Renderer
from stages.agent.environment.base import Task
from stages.agent.environment.collection import build
from stages.agent.environment.episodes import Episode, Limits, play, scripted
from stages.agent.environment.research import ToolSettings, open_environment
from stages.agent.environment.toolbox import Toolbox
from stages.agent.rl.scoring import Answer, score
from stages.artifacts import Dataset
from stages.source.generated import CHAT_TEMPLATE, SPECIAL_TOKENS
from stages.training.cross_entropy import IGNORED

WORDS = ("river", "teacher")


def world(directory: Path) -> tuple[Dataset, Dataset]:
    """The rooms as an index, and a question about each."""
    index, questions = directory / "index", directory / "questions"
    index.mkdir()
    questions.mkdir()
    rooms = [(f"room {number}", word) for number, word in enumerate(WORDS, start=1)]
    write_documents(index, rooms)
    build(index, rooms)
    ToolSettings().write(index)
    tasks = [
        Task(str(number), title, (word,), (ToolCall("visit", {"id": str(number)}),))
        for number, (title, word) in enumerate(rooms, start=1)
    ]
    write_tasks(questions, tasks)
    return Dataset(index), Dataset(questions)


def school(directory: Path, index: Dataset, questions: Dataset, most: int = 400) -> Path:
    """Save a pupil after lessons of eight conversations each, as soon as it says what it has read."""
    conversations, rng = _conversations(index, questions), random.Random(0)
    tokenizer_of(conversations).save_pretrained(directory / "pupil")
    renderer = Renderer(AutoTokenizer.from_pretrained(directory / "pupil"))
    lessons = [renderer.encode(messages) for messages in conversations]
    model = newborn(len(renderer.tokenizer))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(most):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 10, 30 / (step + 1))
        optimiser.zero_grad()
        _loss(model, rng.sample(lessons, 8)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 10 == 9 and _reads(model, renderer, conversations):
            break
    save_model(model, directory / "pupil", tokenizer_from=None)
    return directory / "pupil"


def _reads(model: PreTrainedModel, renderer: Renderer, conversations: list[tuple[Message, ...]]) -> bool:
    """Whether the answer after every visit is the word that was seen, nearly always."""
    scores = []
    for messages in conversations:
        *_, tool, said = messages
        if tool.role == "tool":
            answer = Answer.of(renderer, parse_turn(said.content).answer or "", "")
            ids = renderer.encode(messages[:-1], open_turn=True).ids
            scores.append(score(model, ids, [len(ids)], answer).item())
    return min(scores) > -0.05


def newborn(vocab_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=768,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def tokenizer_of(conversations: list[tuple[Message, ...]]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((m.content for messages in conversations for m in messages), trainer)
    eos, _, end = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=eos, eos_token=eos, pad_token=end)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _conversations(index: Dataset, questions: Dataset) -> list[tuple[Message, ...]]:
    environment = open_environment(index, questions)
    found = []
    with Toolbox(environment.tools) as tools:
        for task in environment.tasks:
            visit = write_turn("", task.solution[0])
            guesses = [[write_turn("", word)] for word in WORDS]
            for turns in [[visit, write_turn("", task.answers[0])]] * 2 + guesses * 2:
                episode = Episode(environment, task, Limits(4))
                (played,) = play([episode], scripted(turns), tools)
                found.append(played.messages)
    return found


def _loss(model: PreTrainedModel, lessons: list[Encoded]) -> torch.Tensor:
    length = max(len(lesson.ids) for lesson in lessons)
    ids = torch.zeros(len(lessons), length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, lesson in enumerate(lessons):
        told, mask = torch.tensor(lesson.ids), torch.tensor(lesson.loss_mask())
        ids[row, : len(told)] = told
        labels[row, : len(told)] = torch.where(mask, told, IGNORED)
    return model(input_ids=ids, labels=labels, use_cache=False).loss
