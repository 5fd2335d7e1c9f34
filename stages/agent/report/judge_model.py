"""A local model as judge: how much it expects, between 1 and 5, when it is asked for one digit.

Nothing is sampled: the rating is the mean of the five digits under the model's next-token probabilities, so the same
work always gets the same rating, and a model that hesitates between 3 and 4 says 3.5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from transformers import PreTrainedModel

from stages.agent.conversation.messages import Message
from stages.agent.conversation.rendering import Renderer, load_renderer
from stages.agent.report.judge import Criterion, Judge, Work
from stages.artifacts import Model
from stages.evaluate.distance import evaluating
from stages.evaluate.loading import load_for_evaluation
from stages.evaluate.matching import text_config

INSTRUCTION: Final = (
    "You judge parts of reports. Answer with one digit from 1 (poor) to 5 (excellent) and nothing else."
)
QUESTIONS: Final[Mapping[Criterion, str]] = {
    "guidance": "Does every title tell what its section has to answer?",
    "hierarchy": "Do the titles stand on one level, and none repeats another section?",
    "logic": "Do the titles follow each other in an order that makes sense?",
    "relevance": "Does the text speak of its section and of the question?",
    "coverage": "Does the text use what the documents offer on it?",
    "depth": "Does the text explain, rather than only name?",
    "novelty": "Does the text say something that is not obvious?",
    "comprehensiveness": "Does the report cover the question in breadth and depth?",
    "insight": "Does the report connect what it found, and conclude something from it?",
    "instruction": "Does the report answer everything that was asked, and nothing else?",
    "readability": "Is the report clear, well ordered and without repetition?",
}
DIGITS: Final = "12345"
LONGEST: Final = 4096
"""Tokens of a prompt at most, whatever the model could read."""
REMEMBERED: Final = 10_000
"""Ratings that a judge keeps: the reward of a work is asked for again where that work is reported."""


class ModelJudge(Judge):
    """Rates with `model`; work that is too long for it is cut at its end. What it has rated it remembers."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer, window: int) -> None:
        self.model, self.renderer, self.window = model, renderer, min(window, LONGEST)
        self.digits = [renderer.encode_text(digit)[-1] for digit in DIGITS]
        self._known: dict[bytes, float] = {}

    def rate(self, work: Work, criteria: Sequence[Criterion]) -> dict[Criterion, float]:
        """The expected digit for each criterion, a pass each for what is new."""
        shown = work.shown()
        return {criterion: self._rated(shown, criterion) for criterion in criteria}

    def _rated(self, shown: str, criterion: Criterion) -> float:
        key = hashlib.sha256(f"{criterion}\n{shown}".encode()).digest()
        if key not in self._known:
            if len(self._known) == REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = self._expected(self._prompt(shown, QUESTIONS[criterion]))
        return self._known[key]

    @torch.no_grad()
    def _expected(self, ids: list[int]) -> float:
        with evaluating(self.model):
            logits_V = self.model(torch.tensor([ids], device=self.model.device), logits_to_keep=1).logits[0, -1]
        share_5 = logits_V[self.digits].double().softmax(-1)
        return float((share_5 * torch.arange(1, 6, device=share_5.device)).sum())

    def _prompt(self, shown: str, question: str) -> list[int]:
        while len(ids := self._encoded(shown, question)) > self.window and shown:
            shown = shown[: int(len(shown) * min(0.95, self.window / len(ids)))]
        return ids

    def _encoded(self, shown: str, question: str) -> list[int]:
        messages = Message("system", INSTRUCTION), Message("user", f"{shown}\n\n{question}")
        return self.renderer.encode(messages, open_turn=True).ids


def load_judge(source: Model) -> ModelJudge:
    """A judge from a model directory."""
    window = text_config(source.config).get("max_position_embeddings") or LONGEST
    return ModelJudge(load_for_evaluation(source, "auto"), load_renderer(source), window)
