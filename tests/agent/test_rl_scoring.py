"""One pass over all prefixes against a pass for each, and where the true answer lies among the tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from stages.agent.conversation.rendering import Renderer
from stages.agent.rl.scoring import Answer, reads_masks, score, score_apart, score_at_once
from tests.agent.lively import lively
from tests.tiny import tiny_model

THOUGHT = "Now I know."
ANSWERS = ("Paris", "1492", " two  words", "<b>", "é", "The River Thames, England.")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "model", max_positions=512)


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return lively(directory)


@pytest.fixture(scope="module")
def renderer(directory: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(directory))


IDS = torch.randint(3, 300, (90,), generator=torch.Generator().manual_seed(1)).tolist()
ENDS = [7, 31, 32, 77]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_one_pass_equals_separate_passes(directory: Path, renderer: Renderer, implementation: str) -> None:
    model = lively(directory)
    model.set_attn_implementation(implementation)
    answer = Answer.of(renderer, "the River Thames", THOUGHT)
    assert reads_masks(model)
    expected = score_apart(model, IDS, ENDS, answer)
    assert expected.std() > 0.1
    torch.testing.assert_close(score_at_once(model, IDS, ENDS, answer), expected, atol=1e-5, rtol=0)


def test_a_later_turn_does_not_reach_an_earlier_score(model: PreTrainedModel, renderer: Renderer) -> None:
    answer, changed = Answer.of(renderer, "1492", THOUGHT), [*IDS[:40], *reversed(IDS[40:])]
    before, after = (score_at_once(model, ids, ENDS, answer) for ids in (IDS, changed))
    torch.testing.assert_close(before[:3], after[:3], atol=1e-6, rtol=0)
    assert abs(before[3] - after[3]) > 0.01


def test_a_score_is_the_mean_log_probability_of_the_answer_alone(model: PreTrainedModel, renderer: Renderer) -> None:
    answer = Answer.of(renderer, "Paris", THOUGHT)
    ids = torch.tensor([IDS[:31] + answer.ids])
    logp = model(ids).logits[0].log_softmax(-1)
    expected = [logp[31 + place - 1, answer.ids[place]] for place in range(answer.first, len(answer.ids))]
    torch.testing.assert_close(score(model, IDS, ENDS, answer)[1], torch.stack(expected).mean())


def test_scores_have_no_gradient_and_leave_the_model_in_training(model: PreTrainedModel, renderer: Renderer) -> None:
    model.train()
    assert not score(model, IDS, ENDS, Answer.of(renderer, "x", THOUGHT)).requires_grad
    assert model.training
    model.eval()
    assert score(model, IDS, [], Answer.of(renderer, "x", THOUGHT)).shape == (0,)


@pytest.mark.parametrize("text", ANSWERS)
def test_the_scored_tokens_are_those_of_the_answer(renderer: Renderer, text: str) -> None:
    answer = Answer.of(renderer, text, THOUGHT)
    before, inside = renderer.decode(answer.ids[: answer.first]), renderer.decode(answer.ids[answer.first :])
    assert (before + inside).endswith(text)
    assert before.startswith(f"<think>{THOUGHT}")
    assert text.strip() in inside
    assert len(inside) <= len(text) + 2  # a token may reach over an edge, no more


def test_another_attention_is_read_prefix_by_prefix(model: PreTrainedModel, renderer: Renderer) -> None:
    answer = Answer.of(renderer, "Paris", THOUGHT)
    expected = score(model, IDS, ENDS, answer)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    try:
        assert not reads_masks(model)
        torch.testing.assert_close(score(model, IDS, ENDS, answer), expected, atol=1e-5, rtol=0)
    finally:
        model.config.layer_types = None
