"""The batched engine against one forward pass after another, over turns of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from grafts import apply
from grafts.hybrid.graft import HybridHeads
from stages.agent.rl.log_probs import policy_log_probs
from stages.agent.rollout.engine import Request, Sampling, Written
from stages.agent.rollout.sampling import draw, uniforms
from stages.agent.rollout.transformers_engine import TransformersEngine
from tests.agent.lively import lively
from tests.tiny import tiny_model

GREEDY = Sampling(temperature=0)
PROMPTS = ([5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [11, 12], [13], [5, 6, 7, 8, 9], [20, 21, 22, 23])
TOLD = ([30, 31, 32], [40], [50, 51, 52, 53, 54, 55], [60, 61], [70], [80, 81])
"""What tools say after the first turn of each."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return lively(tiny_model(tmp_path_factory.mktemp("model") / "model", vocab_size=300), factor=8)


def naive(model: PreTrainedModel, ids: Sequence[int], num: int, stop: int) -> list[int]:
    """The likeliest tokens, each from a whole forward pass."""
    written: list[int] = []
    while len(written) < num and stop not in written:
        logits = model(torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1]
        written.append(int(logits.argmax()))
    return written


def two_turns(engine: TransformersEngine, chosen: Sequence[int], num: int = 14) -> list[tuple[Written, Written]]:
    """Both turns of the chosen rollouts, written side by side."""
    engine.forget()
    first = engine.write([Request(key, PROMPTS[key], 100 + key, num) for key in chosen])
    contexts = [[*PROMPTS[key], *turn.ids, *TOLD[key]] for key, turn in zip(chosen, first, strict=True)]
    again = [Request(key, ids, 200 + key, num - key) for key, ids in zip(chosen, contexts, strict=True)]
    return list(zip(first, engine.write(again), strict=True))


def a_stop(model: PreTrainedModel) -> int:
    """A token that ends some first turns early and others not at all."""
    written = [naive(model, ids, 14, -1) for ids in PROMPTS]
    return next(t for turn in written for t in turn[3:] if 0 < sum(t in other for other in written) < len(written))


def test_greedy_turns_equal_whole_forward_passes(model: PreTrainedModel) -> None:
    stop = a_stop(model)
    found = two_turns(TransformersEngine(model, stop, GREEDY), range(6))
    for key, (first, second) in enumerate(found):
        assert first.ids == naive(model, PROMPTS[key], 14, stop)
        assert second.ids == naive(model, [*PROMPTS[key], *first.ids, *TOLD[key]], 14 - key, stop)
        assert first.stopped == (first.ids[-1] == stop)
    assert len({len(first.ids) for first, _ in found}) > 1


def test_greedy_turns_equal_generate(model: PreTrainedModel) -> None:
    engine = TransformersEngine(model, -1, GREEDY)
    (written,) = engine.write([Request(0, PROMPTS[2], 0, 10)])
    expected = model.generate(
        torch.tensor([PROMPTS[2]]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert written.ids == expected[0, len(PROMPTS[2]) :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_a_whole_pass(model: PreTrainedModel, temperature: float) -> None:
    engine = TransformersEngine(model, -1, Sampling(temperature, top_p=0.9))
    for key, (first, second) in enumerate(two_turns(engine, range(6))):
        ids = [*PROMPTS[key], *first.ids, *TOLD[key], *second.ids]
        mask = torch.zeros(1, len(ids), dtype=torch.bool)
        start = len(PROMPTS[key])
        mask[0, start : start + len(first.ids)] = mask[0, len(ids) - len(second.ids) :] = True
        logp, _ = policy_log_probs(model, torch.tensor([ids]), mask, temperature)
        torch.testing.assert_close(logp[mask], torch.tensor(first.logp + second.logp), atol=2e-4, rtol=0)


def test_what_is_drawn_does_not_depend_on_the_company(model: PreTrainedModel) -> None:
    engine = TransformersEngine(model, 7, Sampling())
    together = two_turns(engine, range(6))
    for key in range(6):
        (alone,) = two_turns(engine, [key])
        assert [turn.ids for turn in alone] == [turn.ids for turn in together[key]]
    assert together[0][0].ids != together[1][0].ids  # one prompt, two seeds


def test_what_is_remembered_changes_nothing(model: PreTrainedModel) -> None:
    engine, forgetful = (TransformersEngine(model, 7, Sampling()) for _ in range(2))
    write = forgetful.write
    forgetful.write = lambda requests: (forgetful.forget(), write(requests))[1]  # type: ignore[method-assign]
    assert [turn[1].ids for turn in two_turns(engine, range(6))] == [
        turn[1].ids for turn in two_turns(forgetful, range(6))
    ]


def test_a_second_turn_reads_only_what_is_new(model: PreTrainedModel) -> None:
    widths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        two_turns(TransformersEngine(model, -1, Sampling()), [0, 1], num=4)
    finally:
        hook.remove()
    assert widths == [4, 1, 1, 1, 1, 4, 1, 1, 1]  # the shared prompt once; then a last token and what the tools said


def test_a_hybrid_reads_everything_again(tmp_path: Path) -> None:
    model = lively(tiny_model(tmp_path / "model", vocab_size=300), factor=8)
    hybrid = apply(model, [HybridHeads(full_heads=((0, 1), None))])
    found = two_turns(TransformersEngine(hybrid, -1, GREEDY), [0, 2, 5], num=8)
    for key, (first, second) in zip([0, 2, 5], found, strict=True):
        assert first.ids == naive(hybrid, PROMPTS[key], 8, -1)
        assert second.ids == naive(hybrid, [*PROMPTS[key], *first.ids, *TOLD[key]], 8 - key, -1)


def test_drawing_follows_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.2, 0.3]).log().expand(3000, 3)
    token, logp = draw(logits, uniforms(1, 3000), Sampling())
    share = torch.bincount(token, minlength=3) / 3000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.2, 0.3]), atol=0.03, rtol=0)
    torch.testing.assert_close(logp, logits[0][token])


def test_top_p_keeps_the_fewest_likely_tokens() -> None:
    logits = torch.tensor([0.5, 0.2, 0.3, 0.0]).log().expand(500, 4)
    token, logp = draw(logits, uniforms(1, 500), Sampling(top_p=0.6))
    assert set(token.tolist()) == {0, 2}
    torch.testing.assert_close(logp, logits[0][token])  # of the whole distribution
    assert draw(logits[:1], torch.zeros(1, dtype=torch.float64), Sampling(top_p=0.01))[0].item() == 0


def test_random_numbers_are_those_of_the_seed() -> None:
    assert torch.equal(uniforms(5, 40)[:3], uniforms(5, 3))
    assert not torch.equal(uniforms(5, 3), uniforms(6, 3))
