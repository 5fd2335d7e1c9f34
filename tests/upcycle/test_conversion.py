"""The stages that make a mixture: exact where they must be, measured where not, and clear about what cannot be."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from grafts.experts import feed_forward
from grafts.loader import load_model
from stages.artifacts import Model
from stages.errors import StageError, UserError
from stages.upcycle.bam import UpcycleBam
from stages.upcycle.btx import UpcycleBtx
from stages.upcycle.drop import UpcycleDrop
from stages.upcycle.sparse import UpcycleSparse
from tests.tiny import tiny_model
from tests.upcycle.families import family, run


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return family(tmp_path_factory.mktemp("family"))


def alone(given: dict) -> dict:
    return {"model": given["seed"], "heldout": given["heldout"]}


def several(given: dict) -> dict:
    return {name: given[name] for name in ("seed", "experts", "heldout")}


def details(context) -> dict:
    return json.loads((context.output("report") / "report.json").read_text())["details"]


@pytest.mark.parametrize("params", [{}, {"split": 2, "num_experts": 2}, {"capacity": 1.5}], ids=str)
def test_copies_compute_what_the_seed_computes(given, tmp_path, params):
    context = run(UpcycleSparse, alone(given), tmp_path, **{"num_experts": 4, **params})
    found = context.results
    assert found["experts"] == 4
    assert found["max_logit_difference"] < 1e-5
    assert found["kl_to_parent"] < 1e-7
    assert found["parameters_ratio"] > 1.3
    assert found["active_parameters"] <= found["parameters"]
    expected = "GraftedLlamaForCausalLM" if "capacity" in params else "MixtralForCausalLM"
    assert details(context)["class"] == expected
    tokenizer = (tmp_path / "out/model/tokenizer.json").read_bytes()
    assert tokenizer == (given["seed"].path / "tokenizer.json").read_bytes()


def test_exactness_is_tried_without_text_too(given, tmp_path):
    found = run(UpcycleSparse, {"model": given["seed"]}, tmp_path, num_experts=2).results
    assert 0 <= found["max_logit_difference"] < 1e-5
    assert "kl_to_parent" not in found


def test_a_conversion_that_should_be_exact_and_is_not_fails(given, tmp_path, monkeypatch):
    honest = feed_forward.mix_grouped
    monkeypatch.setattr(feed_forward, "mix_grouped", lambda *a, **k: 1.01 * honest(*a, **k))
    with pytest.raises(StageError, match="equal experts must compute what the seed computes"):
        run(UpcycleSparse, alone(given), tmp_path, num_experts=2, capacity=2.0)


@pytest.mark.parametrize(
    ("stage", "params"), [(UpcycleSparse, {"noise": 0.1}), (UpcycleDrop, {}), (UpcycleSparse, {"renormalise": False})]
)
def test_what_changes_the_function_is_measured(given, tmp_path, stage, params):
    found = run(stage, alone(given), tmp_path, num_experts=3, **params).results
    assert found["kl_to_parent"] > 1e-8
    assert "max_logit_difference" not in found


def test_dropping_nothing_is_sparse_upcycling_to_the_byte(given, tmp_path):
    run(UpcycleDrop, alone(given), tmp_path / "drop", num_experts=3, ratio=0)
    run(UpcycleSparse, alone(given), tmp_path / "sparse", num_experts=3)
    for name in ("model.safetensors", "config.json"):
        pair = [(tmp_path / stage / "out/model" / name).read_bytes() for stage in ("drop", "sparse")]
        assert pair[0] == pair[1]


def test_btx_puts_the_models_side_by_side(given, tmp_path):
    context = run(UpcycleBtx, several(given), tmp_path)
    assert context.results["experts"] == 3
    assert details(context)["experts"] == ["seed", "a", "b"]
    made = load_file(tmp_path / "out/model/model.safetensors")
    sources = [load_file(model.path / "model.safetensors") for model in (given["seed"], *given["experts"])]
    for number, source in enumerate(sources):
        name = f"model.layers.1.block_sparse_moe.experts.{number}.w1.weight"
        assert torch.equal(made[name], source["model.layers.1.mlp.gate_proj.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(made[name], torch.stack([source[name] for source in sources]).mean(0))


def test_the_seed_can_stay_out_of_the_experts(given, tmp_path):
    context = run(UpcycleBtx, several(given), tmp_path, seed_is_expert=False, others="seed")
    assert details(context)["experts"] == ["a", "b"]
    made, seed = (load_file(path / "model.safetensors") for path in (tmp_path / "out/model", given["seed"].path))
    assert all(torch.equal(made[name], seed[name]) for name in seed if ".mlp." not in name)


@pytest.mark.parametrize(("attention", "cache"), [("kv-expert", 3), ("kv-shared", 1)])
def test_bam_has_experts_of_both_kinds(given, tmp_path, attention, cache):
    context = run(UpcycleBam, several(given), tmp_path, attention=attention)
    assert context.results["cache_ratio"] == cache
    assert 0 < context.results["kl_to_parent"] < 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert model.config.grafts[0].attention == attention
    ids = torch.arange(3, 12)[None]
    whole = model(ids).logits
    assert whole.isfinite().all()
    text = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert text.shape == (1, 13)


def test_bam_of_one_model_many_times_is_that_model(given, tmp_path):
    inputs = {**several(given), "experts": [given["seed"]] * 2}
    found = run(UpcycleBam, inputs, tmp_path, router_std=1.0).results
    assert found["kl_to_parent"] < 1e-9
    assert found["top1_agreement"] == 1


def test_equal_work_gives_equal_bytes(given, tmp_path):
    for name in ("first", "second"):
        run(UpcycleBam, several(given), tmp_path / name)
    for file in ("model/model.safetensors", "model/config.json", "report/report.json"):
        assert (tmp_path / "first/out" / file).read_bytes() == (tmp_path / "second/out" / file).read_bytes()


def changed(given: dict, tmp_path, **options) -> dict:
    return {**several(given), "experts": [given["experts"][0], Model(tiny_model(tmp_path / "other", **options))]}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden": 64}, r"seed has hidden_size 32, experts\[1\] has 64"),
        ({"num_layers": 3}, "seed has num_hidden_layers 2, .* has 3"),
        ({"vocab_size": 400}, "seed has vocab_size 384, .* has 400"),
        ({"tie_embeddings": False}, "seed has tie_word_embeddings True, .* has False"),
    ],
)
def test_models_of_another_shape_are_refused_with_both_values(given, tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        run(UpcycleBtx, changed(given, tmp_path, **options), tmp_path)


def edited(model: Model, directory, file: str, edit) -> Model:
    shutil.copytree(model.path, directory)
    (directory / file).write_text(edit((directory / file).read_text()))
    (directory / "model.safetensors").write_bytes(b"unread")
    return Model(directory)


@pytest.mark.parametrize(
    ("file", "edit", "reason"),
    [
        ("tokenizer.json", lambda text: text.replace('"!"', '"!!"'), "seed has tokenizer '.*', experts.* has '"),
        ("chat_template.jinja", lambda text: text + "!", "seed has chat template '….*experts.0. has '….*!'"),
        ("config.json", lambda text: text.replace('"model_type": "llama"', '"model_type": "mistral"'), "'mistral'"),
        ("config.json", lambda text: text.replace('"rope_theta": 10000.0', '"rope_theta": 5.0'), "has rope_parameters"),
        ("config.json", lambda text: text.replace("{", '{"num_local_experts": 4,', 1), "mixture of experts already"),
        ("config.json", lambda text: text.replace("{", '{"quantization_config": {},', 1), "the model is quantised"),
    ],
)
def test_other_files_are_refused_before_any_weight_is_read(given, tmp_path, file, edit, reason):
    model = edited(given["experts"][0], tmp_path / "edited", file, edit)
    with pytest.raises(UserError, match=reason):
        run(UpcycleBtx, {**several(given), "experts": [model]}, tmp_path)


def test_weights_that_are_not_of_their_config_are_refused(given, tmp_path):
    cut = Model(shutil.copytree(given["experts"][0].path, tmp_path / "cut"))
    held = load_file(cut.path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**held, name: held[name][:-1].clone()}, cut.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"cut have {name} of shape \[31, 32\], its config.json says \[32, 32\]"):
        run(UpcycleBtx, {**several(given), "experts": [cut]}, tmp_path)


def test_a_base_that_has_no_grafts_is_named(given, tmp_path):
    other = edited(given["seed"], tmp_path / "gpt", "config.json", lambda text: '{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="no grafts for the model type 'gpt2': supported are"):
        run(UpcycleSparse, {"model": other}, tmp_path)


@pytest.mark.parametrize(
    ("stage", "params", "reason"),
    [
        (UpcycleBtx, {"top_k": 4}, "top_k: the models give 3 experts, a token cannot go through 4"),
        (UpcycleBtx, {"split": 7}, "64 feed-forward units cannot be cut into 7"),
    ],
)
def test_settings_that_do_not_fit_are_told(given, tmp_path, stage, params, reason):
    with pytest.raises(UserError, match=reason):
        run(stage, several(given), tmp_path, **params)


@pytest.mark.parametrize("stage", [UpcycleBtx, UpcycleBam])
def test_one_branch_beside_a_seed_that_gives_no_expert_is_refused_before_compute(given, stage):
    inputs = {**several(given), "experts": given["experts"][:1]}
    told = r"give 1 expert besides the seed, .* at least 2\nfix: give more models, or set seed_is_expert: true"
    with pytest.raises(UserError, match=told):
        stage(stage.Params(seed_is_expert=False)).check(inputs)
    stage(stage.Params()).check(inputs)


def test_too_few_copies_are_refused_with_the_pipeline():
    with pytest.raises(ValueError, match="top_k: 3 exceeds num_experts: 2"):
        UpcycleSparse.Params(num_experts=2, top_k=3)


def test_a_mixture_is_not_upcycled_again(given, tmp_path):
    run(UpcycleBam, several(given), tmp_path / "bam")
    mixture = Model(tmp_path / "bam/out/model")
    assert load_model(mixture.path, dtype=torch.float32).config.grafts
    with pytest.raises(UserError, match="mixture of experts already"):
        run(UpcycleSparse, {"model": mixture}, tmp_path / "again")


def test_names_of_arms_are_their_values(tmp_path):
    assert Model(tmp_path, name="branch[domain=law,size=2]").short_name == "law, 2"
    assert Model(tmp_path, name="seed").short_name == "seed"
