"""Students cut out of a teacher: against the whole model with those parts silenced, and planted importances."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from grafts.loader import save_model
from stages.artifacts import Model, Report
from stages.distill.cutting import fresh, kept_width, top
from stages.distill.importance import ablation, hidden_norms, measure
from stages.distill.shapes import Shape, student_shape
from stages.distill.student import DistillStudent, StudentParameters
from stages.distill.width import Kept, narrow
from stages.errors import UserError
from stages.stage import Context
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.tiny import tiny_model, tokens_dataset

ALL_GROUPS, ALL_CHANNELS, ALL_HIDDEN = [[0, 1]] * 3, [list(range(48))] * 3, list(range(32))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_identity_to_the_bit(family: str):
    model = tiny(family)
    assert torch.equal(logits(narrow(model, Kept(ALL_GROUPS, ALL_CHANNELS, ALL_HIDDEN))), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_heads_and_channels_are_silent_ones(family: str, tmp_path: Path):
    model = tiny(family)
    groups, channels = [[1], [0], [1]], [list(range(layer, 48, 2)) for layer in (0, 1, 0)]
    narrowed = narrow(model, Kept(groups, channels, ALL_HIDDEN))
    with torch.no_grad():
        for layer, kept_groups, kept in zip(model.model.layers, groups, channels, strict=True):
            layer.self_attn.o_proj.weight[:, 16 * (1 - kept_groups[0]) :][:, :16] = 0
            layer.mlp.down_proj.weight[:, sorted(set(range(48)) - set(kept))] = 0
    torch.testing.assert_close(logits(narrowed), logits(model), rtol=1e-4, atol=1e-4)
    save_model(narrowed, tmp_path, tokenizer_from=None)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is type(model)
    assert (read.config.num_attention_heads, read.config.intermediate_size) == (2, 24)
    assert torch.equal(logits(read), logits(narrowed))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(read.generate(tokens(), **options), read.generate(tokens(), **options, use_cache=False))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_hidden_channels_that_carry_nothing_can_go(family: str):
    model, kept = tiny(family), [channel for channel in range(32) if channel % 4]
    silent = list(range(0, 32, 4))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, silent] = 0
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight[silent] = 0
                if linear.bias is not None:
                    linear.bias[silent] = 0
    found = narrow(model, Kept(ALL_GROUPS, ALL_CHANNELS, kept))
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-3, atol=1e-3)
    assert found.config.hidden_size == 24


def test_it_shares_no_memory_with_its_parent():
    model = tiny()
    before = logits(model)
    with torch.no_grad():
        for parameter in narrow(model, Kept([[0]] * 3, ALL_CHANNELS, ALL_HIDDEN)).parameters():
            parameter.zero_()
    assert torch.equal(logits(model), before)


def test_scores_are_what_they_say():
    """Against hidden states as transformers returns them, and the parts run by hand."""
    model, ids = tiny("qwen3"), tokens(2, 10)
    found = measure(model, list(ids.split(1)))
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        raw = model.model.layers[1](
            states[1], position_embeddings=model.model.rotary_emb(states[1], torch.arange(10)[None])
        )
        cosine = functional.cosine_similarity(states[1], raw if isinstance(raw, torch.Tensor) else raw[0], dim=-1)
    assert found.influence[1].item() == pytest.approx(1 - cosine.mean().item(), rel=1e-3)
    assert [len(score) for score in (found.influence, found.groups, found.channels, found.hidden)] == [3, 3, 3, 32]
    assert len(hidden_norms(model)) == 7
    assert min(found.groups.min(), found.channels.min(), found.hidden.min()) > 0


def test_what_is_planted_as_useless_goes_first():
    model = tiny()
    with torch.no_grad():
        layer = model.model.layers[1]
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
        model.model.layers[0].self_attn.v_proj.weight[8:] *= 1e-3
        model.model.layers[0].self_attn.v_proj.bias[8:] *= 1e-3
        model.model.layers[2].mlp.up_proj.weight[::2] *= 1e-3
    scores = measure(model, [tokens()])
    assert scores.influence.argmin() == 1
    assert scores.influence[1].item() == pytest.approx(0, abs=1e-6)
    rises = ablation(model, tokens(4), batch_size=2)
    assert rises[1].item() == 0
    assert rises.abs().argmin() == 1
    kept = kept_width(scores, Shape(3, 1, 2, 8, 24, 32), range(3))
    assert kept.groups[0] == [0]
    assert kept.channels[2] == list(range(1, 48, 2))


def test_ties_go_to_the_first():
    assert top(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2) == [0, 1]


def test_shapes_are_rounded_to_what_hardware_likes():
    teacher = Shape(30, 3, 9, 64, 1536, 576)
    assert student_shape(teacher, heads=2 / 3, ffn=0.5, hidden=0.667, multiple=64) == Shape(30, 2, 6, 64, 768, 384)
    assert student_shape(teacher, heads=0.01, ffn=0.001, hidden=1, multiple=64) == Shape(30, 1, 3, 64, 64, 576)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("student")
    path = tiny_model(root / "teacher", num_layers=4)
    data = tokens_dataset(root / "data", path, num_windows=8, sequence_length=16)
    return {"teacher": Model(path), "data": data, "heldout": data}


def cut(inputs: dict, directory: Path, seed: int = 0, **params) -> Context:
    stage = DistillStudent(StudentParameters(**params))
    stage.check(inputs)
    context = Context(inputs, out=directory / "out", scratch=directory / "scratch", seed=seed)
    stage.run(context)
    return context


def test_nothing_cut_is_the_teacher(inputs: dict, tmp_path: Path):
    found = cut(inputs, tmp_path).results
    assert (found["kl_to_parent"], found["parameters_ratio"], found["layers"]) == (0, 1, 4)


@pytest.mark.usefixtures("bare_cpu")
def test_what_a_layer_is_worth_is_computed_in_float32_where_that_is_faster():
    model = tiny().to(torch.bfloat16)
    rises = ablation(model, tokens(4), batch_size=2)
    assert torch.equal(rises, ablation(model.float(), tokens(4), batch_size=2))


@pytest.mark.parametrize("depth", ["uniform", "block_influence", "ablation"])
def test_depth_and_width_are_cut_and_told(inputs: dict, tmp_path: Path, depth: str):
    params = {"depth": depth, "depth_fraction": 0.5, "heads_fraction": 0.5, "ffn_fraction": 0.5, "multiple": 8}
    context = cut(inputs, tmp_path, **params)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    teacher = inputs["teacher"].config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.num_hidden_layers == context.results["layers"] == 2
    assert model.config.num_key_value_heads == teacher["num_key_value_heads"] // 2
    assert model.config.intermediate_size == teacher["intermediate_size"] // 2
    assert context.results["parameters"] == sum(p.numel() for p in model.parameters())
    assert context.results["kl_to_parent"] > 0
    details = Report(tmp_path / "out/report").content["details"]
    assert len(details["layer_scores"]) == (0 if depth == "uniform" else 4)
    assert len(details["channels"]) == 2


def test_a_fresh_student_has_the_shape_alone_and_is_a_function_of_its_seed(inputs: dict, tmp_path: Path):
    def weights(name: str, seed: int = 0, **params) -> dict[str, torch.Tensor]:
        cut(inputs, tmp_path / name, seed, depth_fraction=0.5, ffn_fraction=0.5, multiple=8, **params)
        return load_file(tmp_path / name / "out/model/model.safetensors")

    kept, one = weights("kept"), weights("one", weights="fresh")
    again, other = weights("again", weights="fresh"), weights("other", seed=1, weights="fresh")
    assert [(each.shape, each.dtype) for each in one.values()] == [(each.shape, each.dtype) for each in kept.values()]
    assert all(torch.equal(one[name], again[name]) for name in one)
    name = next(name for name in one if name.endswith("q_proj.weight"))
    assert not torch.equal(one[name], kept[name])
    assert not torch.equal(one[name], other[name])


def test_a_fresh_student_in_half_precision_has_whole_frequencies():
    model = tiny().to(torch.bfloat16)
    made = fresh(model, seed=0)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made.model.rotary_emb.inv_freq, tiny().model.rotary_emb.inv_freq)


def test_named_layers_stay(inputs: dict, tmp_path: Path):
    cut(inputs, tmp_path, layers=(0, 2, 3))
    assert Report(tmp_path / "out/report").content["details"]["layers"] == [0, 2, 3]


def test_impossible_cuts_are_refused(inputs: dict):
    def check(given: dict, **params) -> None:
        DistillStudent(StudentParameters(**params)).check(given)

    with pytest.raises(UserError, match="layers names layer 4, the teacher has 4"):
        check(inputs, layers=(0, 4))
    with pytest.raises(UserError, match="there is none"):
        check({"teacher": inputs["teacher"]}, ffn_fraction=0.5)
    with pytest.raises(UserError, match="a llama with 4 heads cannot have hidden size 30"):
        check(inputs, hidden_fraction=30 / inputs["teacher"].config["hidden_size"], multiple=1)
    with pytest.raises(ValueError, match="not ascending"):
        StudentParameters(layers=(2, 1))
