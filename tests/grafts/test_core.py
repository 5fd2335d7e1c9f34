from __future__ import annotations

import copy
import json
import pickle
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from grafts import GraftedConfig, GraftedForCausalLM, apply
from grafts.depth import keep_layers
from grafts.hybrid.graft import HybridHeads
from grafts.loader import load_model, save_model
from grafts.registry import GRAFTS
from stages.quantize.packed import Scheme, round_model, save_packed
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.grafts.toys import REGISTERED, Adapter, TiedMlps
from tests.tiny import tiny_model, tiny_tokenizer

HEADS = ((0, 3), (1,), ())


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in REGISTERED.items():
        monkeypatch.setitem(GRAFTS, name, target)


def hybrid(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: object) -> GraftedForCausalLM:
    model = tiny(family, **changes)
    for parameter in model.parameters():  # not `.to`, which would round the rotary frequencies too
        parameter.data = parameter.data.to(dtype)
    return apply(model, [HybridHeads(full_heads=HEADS)])


def test_the_config_holds_base_and_grafts_and_returns_unchanged(tmp_path: Path):
    config = hybrid().config
    assert GraftedConfig(**config.to_dict()) == config
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, GraftedConfig)
    assert read == config
    assert read.grafts == (HybridHeads(full_heads=HEADS),)
    assert copy.deepcopy(read) == config
    assert GraftedConfig(config.base, ()) != config


def test_the_config_answers_and_takes_what_its_base_would():
    config = hybrid().config
    for name in ("hidden_size", "vocab_size", "tie_word_embeddings", "use_cache", "rope_parameters", "pad_token_id"):
        assert getattr(config, name) == getattr(config.base, name)
    config.vocab_size = 123
    assert config.base.vocab_size == 123
    assert config.model_type == "regraft"
    assert not hasattr(config, "no_such_field")
    assert "hidden_size" in config


def test_a_field_given_while_reading_goes_to_the_base(tmp_path: Path):
    hybrid().config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")._attn_implementation == "eager"
    assert AutoConfig.from_pretrained(tmp_path, rms_norm_eps=0.5).base.rms_norm_eps == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_reading_keep_every_bit(family: str, dtype: torch.dtype, tmp_path: Path):
    model = hybrid(family, dtype)
    model.save_pretrained(tmp_path)
    read, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info.values())
    assert type(read) is type(model)
    state = read.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert len(state) == len(model.state_dict())
    assert torch.equal(read(tokens()).logits, model(tokens()).logits)


def test_shards_and_ties_keep_every_bit(tmp_path: Path):
    model = hybrid()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert "lm_head.weight" not in index["weight_map"]
    assert "model.layers.0.self_attn.linear.A_log" in index["weight_map"]
    read = GraftedForCausalLM.from_pretrained(tmp_path)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    assert torch.equal(read(tokens()).logits, model(tokens()).logits)


def test_stages_load_a_grafted_directory_like_any_other(tmp_path: Path):
    model = hybrid(dtype=torch.bfloat16)
    first, second = tmp_path / "first", tmp_path / "second"
    save_model(model, first, tokenizer_from=None)
    read = load_model(first, dtype=torch.bfloat16)
    save_model(read, second, tokenizer_from=None)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert str(tmp_path) not in (first / "config.json").read_text()


def test_a_grafted_checkpoint_without_one_tensor_is_refused(tmp_path: Path):
    model = hybrid()
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("A_log")}
    save_model(model, tmp_path, tokenizer_from=None, state_dict=weights)
    with pytest.raises(ValueError, match=r"missing: .*A_log"):
        load_model(tmp_path, dtype=torch.float32)


@pytest.mark.skipif(find_spec("accelerate") is None, reason="device maps need accelerate")
def test_a_device_map_places_the_model(tmp_path: Path):
    model = hybrid()
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(read(tokens()).logits, model(tokens()).logits)


def test_it_is_its_base_class_with_other_parts_inside():
    model = tiny()
    embeddings, keys = model.get_input_embeddings().weight, set(model.state_dict())
    grafted = apply(model, [HybridHeads(full_heads=HEADS)])
    assert grafted is model
    assert isinstance(grafted, LlamaForCausalLM)
    assert grafted.get_input_embeddings().weight is embeddings
    assert {key for key in keys if "self_attn" not in key} <= set(grafted.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_models_of_their_own(clone):
    model = hybrid()
    copied = clone(model)
    assert torch.equal(copied(tokens()).logits, model(tokens()).logits)
    copied.model.layers[0].self_attn.gain.data.zero_()
    assert not torch.equal(copied(tokens()).logits, model(tokens()).logits)
    assert copied.config == model.config


def test_a_model_is_made_from_its_config_alone():
    config = hybrid("qwen3").config
    made = AutoModelForCausalLM.from_config(config)
    assert made(tokens()).logits.isfinite().all()
    assert type(GraftedForCausalLM(config)) is type(made)


def test_embeddings_are_resized_and_stay_tied(tmp_path: Path):
    model = hybrid()
    model.resize_token_embeddings(100)
    assert model.config.vocab_size == 100
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert read(tokens()).logits.shape[-1] == 100
    assert read.lm_head.weight is read.model.embed_tokens.weight


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = hybrid("qwen3").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(tokens(), labels=tokens()).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_unsupported_bases_are_named_with_the_supported_ones():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    with pytest.raises(ValueError, match="'gpt2': supported are gemma3_text, llama, mistral, qwen2, qwen3"):
        apply(model, [])
    with pytest.raises(ValueError, match="no grafts for the model type ''"):
        GraftedConfig()
    with pytest.raises(ValueError, match="not on a LlamaModel"):
        apply(tiny().model, [])


def test_fields_beside_a_finished_base_are_refused():
    with pytest.raises(TypeError, match="vocab_size: set these on the base"):
        GraftedConfig(tiny().config, vocab_size=5)


def test_unknown_and_changed_grafts_are_refused():
    fields = hybrid().config.to_dict()
    with pytest.raises(ValueError, match=r"unknown graft 'zzz'\. Known grafts: "):
        GraftedConfig(**{**fields, "grafts": [{"name": "zzz"}]})
    with pytest.raises(ValueError, match="did you mean 'hybrid_heads'"):
        GraftedConfig(**{**fields, "grafts": [{**fields["grafts"][0], "name": "hybrid_head"}]})
    with pytest.raises(ValueError, match="revision 2 of the graft 'hybrid_heads'"):
        GraftedConfig(**{**fields, "grafts": [{**fields["grafts"][0], "revision": 2}]})
    with pytest.raises(ValueError, match="more_heads"):
        GraftedConfig(**{**fields, "grafts": [{**fields["grafts"][0], "more_heads": 1}]})


def test_grafts_compose_and_are_replayed_in_order(tmp_path: Path):
    model = apply(tiny(), [HybridHeads(full_heads=HEADS)])
    alone = model(tokens()).logits
    model = apply(model, [Adapter()])
    assert torch.equal(model(tokens()).logits, alone)
    assert [graft.name for graft in model.config.grafts] == ["hybrid_heads", "adapter"]
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(read(tokens()).logits, alone)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_shared_layers_are_stored_once_and_stay_shared(tie_embeddings: bool, tmp_path: Path):
    model = apply(tiny(tie_word_embeddings=tie_embeddings), [HybridHeads(full_heads=HEADS), TiedMlps(targets=(1, 2))])
    assert model.model.layers[2].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
    save_model(model, tmp_path, tokenizer_from=None)
    read = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(read(tokens()).logits, model(tokens()).logits)
    assert read.model.layers[2].mlp.up_proj.weight is read.model.layers[0].mlp.up_proj.weight
    assert (read.lm_head.weight is read.model.embed_tokens.weight) == tie_embeddings
    assert read.num_parameters() == model.num_parameters()


@pytest.mark.parametrize(
    ("grafts", "reason"),
    [
        ([HybridHeads(full_heads=HEADS)] * 2, "the model's attention is already grafted"),
        ([TiedMlps(), HybridHeads(full_heads=HEADS)], "layers that share parameters cannot be changed one by one"),
        ([Adapter(), HybridHeads(full_heads=HEADS)], "merge or drop it first"),
        ([TiedMlps(targets=(7,))], "no such layer"),
    ],
)
def test_senseless_compositions_are_refused_before_anything_changes(grafts: list, reason: str):
    model = tiny()
    with pytest.raises(ValueError, match=reason):
        apply(model, grafts)
    assert type(model) is LlamaForCausalLM
    with pytest.raises(ValueError, match=reason):
        GraftedConfig(model.config, grafts)


def test_a_second_hybrid_on_a_grafted_model_is_refused():
    model = hybrid()
    before = model(tokens()).logits
    with pytest.raises(ValueError, match="start again from the model before"):
        apply(model, [HybridHeads(full_heads=HEADS)])
    assert torch.equal(model(tokens()).logits, before)


@pytest.mark.parametrize("graft", [HybridHeads(full_heads=HEADS), TiedMlps(), Adapter()])
def test_every_graft_has_an_identity(graft):
    model = tiny()
    expected = model(tokens()).logits
    torch.testing.assert_close(apply(model, [graft.identity(model.config)])(tokens()).logits, expected)


def test_a_grafted_model_is_not_pruned_by_depth():
    with pytest.raises(ValueError, match="prune by depth first"):
        keep_layers(hybrid(), [0, 2])


def test_a_hybrid_is_quantised_and_read_back_dense(tmp_path: Path):
    model = hybrid()
    packed = round_model(model, Scheme(bits=8, group_size=8, symmetric=True), ["lm_head"], lambda *_: None)
    save_packed(model, packed, tmp_path / "int8", tiny_tokenizer(tmp_path))
    read = load_model(tmp_path / "int8", dtype=torch.float32)
    assert read.config == model.config
    assert 0 < (read(tokens()).logits - model(tokens()).logits).abs().max() < 0.2


def test_a_quantised_base_is_refused():
    model = tiny(quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(ValueError, match="quantise last"):
        apply(model, [HybridHeads(full_heads=HEADS)])


def test_the_code_in_the_docs_runs(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "grafts.md").read_text()
    reading, putting = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[:2]
    names = {"torch": torch, "path": tiny_model(tmp_path / "m"), "out": tmp_path / "out", "token_ids": tokens()}
    exec(putting, names)
    exec(reading, {"path": names["out"]})
    assert (names["out"] / "tokenizer.json").is_file()


@pytest.mark.parametrize("graft", [HybridHeads(full_heads=HEADS), TiedMlps(), Adapter()])
def test_building_makes_what_converting_makes(graft):
    converted = apply(tiny(), [graft])
    with torch.device("meta"):
        built = GraftedForCausalLM(converted.config)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (converted, built)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in built.parameters())
