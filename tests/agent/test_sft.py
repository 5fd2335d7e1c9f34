"""Fine-tuning: rows, masks, packing that changes nothing, adapters that start as nothing, templates that stay."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3NextConfig, Qwen3NextForCausalLM

from grafts.loader import load_model
from stages.agent.conversation.messages import ToolCall, write_turn
from stages.agent.conversation.records import read_trajectories, write_trajectories
from stages.agent.conversation.rendering import PLAIN_TEMPLATE, load_renderer
from stages.agent.sft.packing import Conversation, Packed, pack, place
from stages.agent.sft.recipe import Lora, as_batch, predict, with_lora
from stages.agent.sft.stage import AgentSft
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.evaluate.measured import DISTANCE
from stages.training.cross_entropy import IGNORED, naive
from stages.training.recipe import Batch
from tests.agent.world import run, talk
from tests.tiny import tiny_model, tokens_dataset

ASK = ("assistant", write_turn("I look.", ToolCall("search", {"query": "x"})))
TALKS = [
    talk(ASK, ("tool", "y " * n), ("assistant", write_turn("So.", "z" * n)), question="Who? " * n) for n in (1, 9, 4, 2)
]
QUICK = {"precision": "fp32", "batch_sequences": 2, "window": 384, "learning_rate": 1e-2, "micro_batch": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model(tiny_model(tmp_path_factory.mktemp("model"), max_positions=512))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    directory = tmp_path_factory.mktemp("data")
    write_trajectories(directory, TALKS)
    return Dataset(directory)


def conversations(model: Model) -> list[Conversation]:
    encoded = [load_renderer(model).encode(found.messages) for found in TALKS]
    return [Conversation(found.ids, found.loss_mask()) for found in encoded]


@given(st.lists(st.integers(1, 20), max_size=12), st.booleans())
def test_every_conversation_lies_whole_in_one_row(lengths, several):
    rows = place(lengths, 20, several=several)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    assert several or len(rows) == len(lengths)


def test_rows_say_what_conversations_do():
    given = [Conversation([5, 6, 7], [False, True, True]), Conversation([8, 9], [True, True])]
    packed = pack(given, 7, pad_id=1, several=True)
    assert packed.ids.tolist() == [[5, 6, 7, 8, 9, 1, 1]]
    assert packed.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9, IGNORED, IGNORED]]
    assert packed.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1]]


def test_rows_are_saved_and_mapped(tmp_path):
    packed = pack([Conversation([5, 6], [False, True])], 4, 1, several=True)
    packed.save(tmp_path)
    for found, expected in zip(vars(Packed.load(tmp_path)).values(), vars(packed).values(), strict=True):
        assert np.array_equal(found, expected)


def losses(module, packed: Packed) -> list[float]:
    """Loss of each target token, row by row, sorted: the order of rows says nothing."""
    logits_BTV, labels_BT = predict(module, as_batch(packed, range(len(packed.ids))))
    found = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), reduction="none")
    return sorted(found[labels_BT.flatten() != IGNORED].tolist())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_conversations_do_not_see_each_other(model, attention):
    module = load_model(model.path, dtype=torch.float32)
    module.set_attn_implementation(attention)
    given = conversations(model)
    together, alone = (pack(given, 512, 2, several=several) for several in (True, False))
    assert len(together.ids) < len(alone.ids)
    assert losses(module, together) == pytest.approx(losses(module, alone), abs=1e-5)
    naively = pack(given, 512, 2, several=True)
    naively.positions[:] = np.arange(512)
    assert losses(module, naively) != pytest.approx(losses(module, alone), abs=1e-3), "the test can fail"


def test_the_loss_is_that_of_the_assistant_s_tokens(model):
    module = load_model(model.path, dtype=torch.float32)
    (found,) = conversations(model)[:1]
    logits_TV = module(torch.tensor([found.ids])).logits[0]
    labels_T = torch.tensor([token if own else IGNORED for token, own in zip(found.ids, found.mask, strict=True)])
    batch = as_batch(pack([found], 512, 2, several=True), [0])
    logits_BTV, labels_BT = predict(module, batch)
    assert batch.num_targets == sum(found.mask)
    expected = naive(logits_TV[:-1], labels_T[1:])
    assert naive(logits_BTV.flatten(0, 1), labels_BT.flatten()).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("several", [True, False], ids=["packed", "unpacked"])
def test_what_nothing_learns_from_is_not_computed(model, several):
    """The loss and its gradient are those of whole rows; rows without anything to learn are rows still."""
    module, packed = load_model(model.path, dtype=torch.float32), pack(conversations(model), 512, 2, several=several)
    batch = as_batch(packed, range(len(packed.ids)))
    last = int(np.flatnonzero((packed.labels != IGNORED).any(0))[-1])
    assert batch.tensors["ids_BT"].shape == (len(packed.ids), last + 1)
    assert last + 1 < 512
    parts = {"ids_BT": packed.ids, "labels_BT": packed.labels, "positions_BT": packed.positions}
    whole = Batch({name: torch.from_numpy(rows).long() for name, rows in parts.items()}, batch.num_targets)
    found = []
    for each in (batch, whole):
        logits_BTV, labels_BT = predict(module, each)
        loss = naive(logits_BTV.flatten(0, 1), labels_BT.flatten())
        found.append((loss.item(), torch.autograd.grad(loss, module.lm_head.weight)[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    packed.labels[:] = IGNORED
    assert as_batch(packed, [0]).tensors["ids_BT"].shape == (1, 2)


def test_adapters_start_as_nothing_and_merge_exactly(model):
    plain = load_model(model.path, dtype=torch.float32)
    ids = torch.arange(40).unsqueeze(0)
    expected = plain(ids).logits
    adapted = with_lora(load_model(model.path, dtype=torch.float32), Lora(4, 8, 0))
    assert torch.equal(adapted(ids).logits, expected)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
    unmerged = adapted(ids).logits
    assert not torch.allclose(unmerged, expected, atol=1e-3)
    assert torch.allclose(adapted.merge_and_unload()(ids).logits, unmerged, atol=1e-5)


@pytest.mark.parametrize(
    ("extra", "share"),
    [({}, 0.75), ({"packing": False}, 0.75), ({"lora_rank": 8, "activation_checkpointing": True}, 0.99)],
    ids=["whole", "unpacked", "adapters"],
)
def test_it_learns_what_the_assistant_says(model, data, tmp_path, extra, share):
    inputs = {"model": model, "trajectories": data, "validation": data}
    context = run(AgentSft, inputs, tmp_path, **{**QUICK, **extra}, epochs=12)
    curve = [e["values"]["loss"] for e in context.events if e["event"] == "curve" and "loss" in e["values"]]
    assert context.results["validation_loss"] < share * curve[0], "adapters beside random weights learn little"
    assert 0 < context.results["validation_accuracy"] < 1
    assert context.results["trajectories"] == 4
    saved = tmp_path / "out/model"
    found = AutoModelForCausalLM.from_pretrained(saved)
    assert type(found).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in found.named_parameters())
    assert Model(saved).tokenizer_fingerprint == model.tokenizer_fingerprint


def test_a_model_without_a_template_gets_one_and_keeps_it(tmp_path, data):
    bare = tiny_model(tmp_path / "bare", max_positions=512)
    (bare / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(bare).chat_template is None
    run(AgentSft, {"model": Model(bare), "trajectories": data}, tmp_path, **QUICK, epochs=1)
    assert AutoTokenizer.from_pretrained(tmp_path / "out/model").chat_template == PLAIN_TEMPLATE


def test_the_plain_template_replaces_another(model, data, tmp_path):
    context = run(AgentSft, {"model": model, "trajectories": data}, tmp_path, **QUICK, epochs=1, template="plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "out/model").chat_template == PLAIN_TEMPLATE
    assert context.results["loss"] > 0


def test_trajectories_longer_than_the_window_are_counted(model, data, tmp_path):
    lengths = sorted(len(found.ids) for found in conversations(model))
    options = {**QUICK, "window": lengths[-1] - 1, "epochs": 1}
    context = run(AgentSft, {"model": model, "trajectories": data}, tmp_path, **options)
    assert context.results["too_long"] == 1
    assert context.results["trajectories"] == 3
    with pytest.raises(
        UserError, match=f"none of 4 trajectories fits window: 32; the shortest has {lengths[0]} tokens"
    ):
        run(AgentSft, {"model": model, "trajectories": data}, tmp_path, **{**options, "window": 32})


def test_a_window_beyond_the_context_is_refused(model, data, tmp_path):
    with pytest.raises(UserError, match="window: 600 exceeds the model's context of 512"):
        run(AgentSft, {"model": model, "trajectories": data}, tmp_path, **{**QUICK, "window": 600})


def test_linear_heads_do_not_share_rows(model, data, tmp_path):
    hybrid = shutil.copytree(model.path, tmp_path / "hybrid")
    graft = {"name": "hybrid_heads", "full_heads": [[0], [0]]}
    (hybrid / "config.json").write_text(json.dumps({"model_type": "regraft", "grafts": [graft], "base": {}}))
    inputs = {"model": Model(hybrid), "trajectories": data}
    with pytest.raises(UserError, match="linear heads"):
        AgentSft(AgentSft.Params(**QUICK)).check(inputs)
    AgentSft(AgentSft.Params(**QUICK, packing=False)).check(inputs)


def test_a_model_that_reads_on_into_the_next_conversation_is_found_out(model, data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    config = Qwen3NextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        num_experts=0,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    Qwen3NextForCausalLM(config).save_pretrained(tmp_path / "recurrent")
    tokenizer.save_pretrained(tmp_path / "recurrent")
    inputs = {"model": Model(tmp_path / "recurrent"), "trajectories": data}
    with pytest.raises(UserError, match="lets the documents of a window see each other") as caught:
        run(AgentSft, inputs, tmp_path / "packed", **{**QUICK, "window": 512})
    assert caught.value.fix == "set packing: false, which gives each conversation a row"
    alone = run(AgentSft, inputs, tmp_path / "alone", **{**QUICK, "window": 512}, packing=False)
    assert alone.results["trajectories"] == 4


def test_rows_of_one_conversation_each_are_not_several():
    given = [Conversation([5, 6, 7], [False, True, True]), Conversation([8, 9], [True, True])]
    assert [pack(given, length, 1, several=True).several for length in (5, 4)] == [True, False]
    assert not pack(given, 7, 1, several=False).several


def test_the_distance_to_the_parent_is_measured_on_text(model, data, tmp_path):
    text = tokens_dataset(tmp_path / "text", model.path, num_windows=6, sequence_length=64)
    inputs = {"model": model, "trajectories": data, "heldout": text}
    context = run(AgentSft, inputs, tmp_path, **QUICK, epochs=1, heldout_windows=4)
    assert context.results["kl_to_parent"] > 0
    assert set(DISTANCE) <= set(context.results)
    assert not any(name.startswith("validation_") for name in context.results)
    details = json.loads((tmp_path / "out/report/report.json").read_text())["details"]
    assert details["computed_in"] == "float32"
    other = Dataset(shutil.copytree(text.path, tmp_path / "other"))
    replace(other.card, tokenizer="another").write(other.path)
    with pytest.raises(UserError, match="heldout: the tokens come from tokenizer another"):
        AgentSft(AgentSft.Params(**QUICK)).check({**inputs, "heldout": Dataset(other.path)})


@pytest.mark.parametrize("name", ["trajectories", "validation"])
@pytest.mark.parametrize(
    ("talks", "problem"),
    [([], "has no trajectories"), ([talk(("tool", "y"))], "in none of 1 .* the assistant says anything")],
)
def test_what_nothing_can_be_learnt_or_measured_on_is_refused(model, data, tmp_path, name, talks, problem):
    (tmp_path / "nothing").mkdir()
    write_trajectories(tmp_path / "nothing", talks)
    inputs = {"model": model, "trajectories": data, name: Dataset(tmp_path / "nothing")}
    with pytest.raises(UserError, match=problem) as caught:
        run(AgentSft, inputs, tmp_path, **QUICK)
    assert caught.value.where == name


def test_trajectories_survive_being_written(data):
    assert read_trajectories(data) == TALKS
