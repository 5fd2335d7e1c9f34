"""Terms between layers, and distillation on the student's own text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from grafts.depth import keep_layers
from stages.artifacts import Model
from stages.distill.layer_map import layer_pairs
from stages.distill.logits import DistillLogits, LogitsParameters
from stages.distill.recipe import Distillation
from stages.distill.sampling import continue_windows, is_sampled
from stages.distill.terms import attention_term, hidden_term
from stages.distill.text import Text
from stages.errors import UserError
from stages.training.recipe import Worker
from tests.distill.test_logits import distil, inputs  # noqa: F401, a fixture
from tests.grafts.families import tiny, tokens
from tests.tiny import tiny_model


def naive_hidden(student, teacher, pairs, counts) -> float:
    total = 0.0
    for ours, theirs in pairs:
        for b, t in counts.nonzero().tolist():
            mine, other = student[ours + 1][b, t], teacher[theirs + 1][b, t]
            total += float(((mine - other) ** 2).sum() / (other**2).sum())
    return total / len(pairs)


def naive_attention(student, teacher, pairs, counts) -> float:
    total = 0.0
    for ours, theirs in pairs:
        for b, t in counts.nonzero().tolist():
            for head in range(student[ours].shape[1]):
                p, q = teacher[theirs][b, head, t, : t + 1], student[ours][b, head, t, : t + 1]
                total += float((p * (p / q).log()).sum()) / student[ours].shape[1]
    return total / len(pairs)


def insides(model: PreTrainedModel):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(tokens(), output_hidden_states=True, output_attentions=True, use_cache=False)


def test_a_map_of_no_layers_is_refused():
    with pytest.raises(ValidationError, match="at least 1 item"):
        LogitsParameters(hidden_weight=1, layer_map=())


def test_terms_equal_naive_loops_and_are_zero_between_equals():
    teacher = tiny("qwen3")
    student = tiny("qwen3", seed=1, num_hidden_layers=2)
    ours, theirs, pairs = insides(student), insides(teacher), [(0, 1), (1, 2)]
    counts = torch.rand(tokens().shape, generator=torch.Generator().manual_seed(0)) > 0.4
    for term, naive, name in (
        (hidden_term, naive_hidden, "hidden_states"),
        (attention_term, naive_attention, "attentions"),
    ):
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert term(found, expected, pairs, counts).item() == pytest.approx(
            naive(found, expected, pairs, counts), rel=1e-4
        )
        assert term(expected, expected, [(0, 0), (2, 2)]).item() == 0


def test_a_pruned_student_is_at_no_distance_before_the_first_gap():
    teacher = tiny()
    pruned = insides(keep_layers(teacher, [0, 2])).hidden_states
    assert hidden_term(pruned, insides(teacher).hidden_states, [(0, 0)]).item() == 0
    assert hidden_term(pruned, insides(teacher).hidden_states, [(1, 2)]).item() > 0


def test_layers_are_paired_by_depth():
    assert layer_pairs(None, 3, 6, hidden=True) == [(0, 1), (1, 3), (2, 5)]
    assert layer_pairs(None, 4, 4, hidden=True) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert layer_pairs(None, 4, 2, hidden=True) == [(0, 0), (1, 0), (2, 0), (3, 1)]
    assert layer_pairs([(0, 5)], 3, 6, hidden=False) == [(0, 5)]
    with pytest.raises(UserError, match=r"\(3, 0\); the student has 3 layers, the teacher 6"):
        layer_pairs([(3, 0)], 3, 6, hidden=False)


@pytest.mark.parametrize("pair", [(0, 5), (2, 4)])
def test_what_the_final_norm_has_passed_is_not_compared_with_what_it_has_not(pair: tuple[int, int]):
    with pytest.raises(UserError, match="the last layer is 2 in the student, 5 in the teacher"):
        layer_pairs([(0, 0), pair], 3, 6, hidden=True)
    assert layer_pairs([(0, 0), (2, 5)], 3, 6, hidden=True) == [(0, 0), (2, 5)]


def test_layer_terms_teach(inputs: dict, tmp_path: Path):  # noqa: F811
    alone = {"kl_weight": 0, "hidden_weight": 1, "attention_weight": 1, "depth_fraction": 0.5}
    untrained = distil(inputs, tmp_path / "a", **alone, tokens=1, learning_rate=1e-12).results
    trained = distil(inputs, tmp_path / "b", **alone, tokens=20 * 8 * 32).results
    assert trained["loss"] < 0.6 * untrained["loss"]
    assert trained["kl_to_parent"] < untrained["kl_to_parent"]
    assert distil(inputs, tmp_path / "c", **{**alone, "depth_fraction": 1}, tokens=1).results["loss"] < 1e-6


@pytest.fixture(scope="module")
def live(inputs: dict, tmp_path_factory: pytest.TempPathFactory) -> Distillation:  # noqa: F811
    root = tmp_path_factory.mktemp("live")
    params = LogitsParameters(on_policy_fraction=0.5, prompt_tokens=8)
    recipe = Distillation(inputs["teacher"], None, inputs["data"], None, params, root / "cache", root / "out")
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    return recipe


def test_only_what_the_student_wrote_is_a_target(live: Distillation):
    indices = [0, 1, 2, 3]
    batch = live.batch(indices)
    sampled = [is_sampled(index, 0.5) for index in indices]
    assert batch.tensors["sampled_B"].tolist() == sampled
    assert {True, False} == set(sampled)
    assert batch.num_targets == 4 * 31 - sum(sampled) * 7
    student = live.build()
    text = Text.of(batch, student, 8)
    ids, counts, original = text.ids, text.counts, batch.tensors["ids_BT"]
    assert counts is not None
    assert counts.sum() == batch.num_targets
    for row, is_own in enumerate(sampled):
        assert torch.equal(ids[row, :8], original[row, :8])
        assert torch.equal(ids[row], original[row]) != is_own
    with torch.no_grad():
        whole = live.loss(student, batch).total
        parts = [live.loss(student, live.batch([index])).total for index in indices]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_windows_are_spread_and_none_or_all_are_taken_at_the_ends():
    assert abs(sum(is_sampled(index, 0.3) for index in range(1000)) - 300) < 5
    assert not any(is_sampled(index, 0.0) for index in range(50))
    assert all(is_sampled(index, 1.0) for index in range(50))


def test_continuing_follows_the_models_distribution_and_the_cache_changes_nothing():
    model, ids = tiny(vocab_size=6), tokens(1, 4) % 6
    rows = ids.expand(4000, -1)
    drawn = continue_windows(model, rows, 3, range(4000))[:, 3]
    with torch.no_grad():
        expected = model(ids[:, :3]).logits[0, -1].softmax(-1)
    torch.testing.assert_close(drawn.bincount(minlength=6) / 4000, expected, rtol=0, atol=0.03)
    written = continue_windows(model, tokens(2, 12) % 6, 4, [3, 5])
    again = continue_windows(model, written, 11, [3, 5])
    assert torch.equal(written[:, :11], again[:, :11])
    assert torch.equal(continue_windows(model, tokens(2, 12)[1:] % 6, 4, [5])[0], written[1])


def test_only_the_tail_counts_where_asked_for(inputs: dict, tmp_path: Path):  # noqa: F811
    def pairs(**params) -> list:
        chosen = LogitsParameters(depth_fraction=0.5, hidden_weight=1, **params)
        recipe = Distillation(inputs["teacher"], None, inputs["data"], None, chosen, tmp_path, tmp_path)
        return list(recipe._layer_terms().pairs)

    assert pairs() == [(0, 0), (1, 3)]
    assert pairs(tail_layers=1) == [(1, 3)]
    assert pairs(tail_layers=5, layer_map=((1, 3), (0, 1))) == [(1, 3), (0, 1)]


def test_on_policy_training_teaches(inputs: dict, tmp_path: Path):  # noqa: F811
    own = {"on_policy_fraction": 1.0, "prompt_tokens": 16, "divergence": "reverse_kl", "depth_fraction": 0.5}
    untrained = distil(inputs, tmp_path / "a", **own, tokens=1, learning_rate=1e-12).results
    trained = distil(inputs, tmp_path / "b", **own, tokens=15 * 8 * 32).results
    assert trained["loss"] < 0.8 * untrained["loss"]
    assert trained["kl_to_parent"] < untrained["kl_to_parent"]


def test_what_cannot_be_compared_is_refused(inputs: dict, tmp_path: Path):  # noqa: F811
    narrow = {**inputs, "student": Model(tiny_model(tmp_path, num_layers=1, hidden=16))}
    with pytest.raises(
        UserError,
        match=r"hidden states cannot be compared: the student has hidden_size 16, [\s\S]*set hidden_weight: 0",
    ):
        DistillLogits(LogitsParameters(hidden_weight=1)).check(narrow)
    half = {"depth_fraction": 0.5, "attention_weight": 1}
    with pytest.raises(UserError, match=r"the pair \(2, 3\); the student has 2 layers, the teacher 4"):
        DistillLogits(LogitsParameters(layer_map=((2, 3),), **half)).check(inputs)
    DistillLogits(LogitsParameters(layer_map=((1, 3),), **half)).check(inputs)
    with pytest.raises(UserError, match="prompt_tokens: 32, but the windows have 32 tokens"):
        DistillLogits(LogitsParameters(on_policy_fraction=1)).check(inputs)
    with pytest.raises(ValidationError, match="its targets; set on_policy_fraction: 0"):
        LogitsParameters(on_policy_fraction=0.1, ce_weight=1)
    with pytest.raises(ValidationError, match="zero_stage 3 cannot generate"):
        LogitsParameters(on_policy_fraction=0.1, zero_stage=3)


def test_steps_to_less_memory_end_before_the_student_cannot_generate():
    params: LogitsParameters | None = LogitsParameters(on_policy_fraction=0.5, zero_stage=2, micro_batch=1)
    params = params.smaller(2)
    assert params is not None
    assert params.activation_checkpointing
    assert params.smaller(2) is None
