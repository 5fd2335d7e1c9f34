"""`quantize.glowq` and `quantize.glowq_s` from end to end, on models of two layers."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import grafts
from grafts.experts.graft import Experts
from grafts.loader import load_model, save_model
from grafts.lowrank.graft import correction
from grafts.quantised.graft import quantised_linears
from grafts.registry import GRAFTS
from stages.artifacts import Dataset, Model
from stages.errors import UserError
from stages.quantize.glowq import GlowqParams, QuantizeGlowq
from stages.quantize.glowq_s import GlowqSelectedParams
from stages.quantize.mixed import MixedParams, QuantizeMixed
from stages.stage import Context
from tests.grafts.toys import REGISTERED, TiedMlps
from tests.quantize.runs import IDS, SKIP_GATES, logits, quantize
from tests.tiny import tiny_model, tokens_dataset

SOLVERS = ("glowq", "glowq_refit", "qera_exact", "qera_approx", "l2qer", "zeroquant_v2")


def report(context: Context) -> dict[str, Any]:
    return json.loads((context.output("report") / "report.json").read_text())


def test_it_is_better_than_its_base_and_loads_in_plain_transformers(tmp_path: Path, parent: Path, tokens: Dataset):
    context, plain = (
        quantize("glowq", parent, tmp_path, tokens, bits=3),
        quantize("rtn", parent, tmp_path, tokens, bits=3),
    )
    found, out = context.results, context.output("model")
    assert found["output_error"] < 0.9 * found["output_error_uncorrected"]
    assert found["output_error_uncorrected"] == found["output_error_rounded"]
    assert found["kl_to_parent"] < 0.9 * plain.results["kl_to_parent"]
    assert plain.results["bytes_after"] < found["bytes_after"] < found["bytes_before"]
    assert torch.equal(logits(out, AutoModelForCausalLM.from_pretrained), logits(out))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 27)


@pytest.mark.parametrize("base", ["rtn", "gptq", "awq"])
def test_rank_nought_writes_the_bytes_of_its_base(tmp_path: Path, parent: Path, tokens: Dataset, base: str):
    ours = quantize("glowq", parent, tmp_path, tokens, base=base, rank=0).output("model")
    theirs = quantize(base, parent, tmp_path, tokens).output("model")
    for file in theirs.iterdir():
        assert (ours / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("base", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_codes_are_those_of_the_base(tmp_path: Path, parent: Path, tokens: Dataset, base: str, symmetric: bool):
    # in sequence, later layers would be calibrated on what the corrected ones before them give
    ours = quantize("glowq", parent, tmp_path, tokens, base=base, symmetric=symmetric, sequential=False).output("model")
    options = {} if base == "rtn" else {"sequential": False}
    theirs = quantize(base, parent, tmp_path, tokens, symmetric=symmetric, **options).output("model")
    found, expected = (load_file(path / "model.safetensors") for path in (ours, theirs))
    shared = [name for name in expected if not name.endswith("weight_shape")]
    assert all(torch.equal(found[name], expected[name]) for name in shared)
    assert {name.rpartition(".")[2] for name in found.keys() - set(shared)} == {"left", "right"}


def test_full_rank_without_shrinkage_restores_the_outputs(tmp_path: Path, parent: Path, tokens: Dataset):
    source = tmp_path / "float32"
    model = load_model(parent, dtype=torch.float32)
    save_model(model, source, tokenizer_from=parent)
    context = quantize("glowq", source, tmp_path, tokens, bits=2, rank=128, shrinkage=0, decomposition="exact")
    assert context.results["output_error"] < 1e-4 < 0.1 < context.results["output_error_uncorrected"]
    assert context.results["error_captured"] == pytest.approx(1)
    assert context.results["kl_to_parent"] < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_from_the_error(tmp_path: Path, parent: Path, tokens: Dataset, solver: str):
    context = quantize("glowq", parent, tmp_path, tokens, solver=solver, bits=3)
    found, details = context.results, report(context)["details"]
    assert found["output_error"] < found["output_error_uncorrected"]
    groups = [tuple(each["members"]) for each in details["corrections"]]
    assert len(groups) == (8 if solver.startswith("glowq") else 14)
    model = load_model(context.output("model"), dtype=torch.bfloat16)
    rights = {correction(model, name).right.data_ptr() for name in quantised_linears(model)}
    assert len(rights) == len(groups)


def test_for_groups_of_one_glowq_is_qera(tmp_path: Path, parent: Path, tokens: Dataset):
    one, other = (
        load_file(
            quantize("glowq", parent, tmp_path / solver, tokens, solver=solver).output("model") / "model.safetensors"
        )
        for solver in ("glowq", "qera_exact")
    )
    solo = [name for name in one if "correction" in name and ("o_proj" in name or "down_proj" in name)]
    assert len(solo) == 8
    assert all(torch.equal(one[name], other[name]) for name in solo)
    assert not torch.equal(*(each["model.layers.0.self_attn.q_proj.correction.left"] for each in (one, other)))


def test_at_equal_bytes_a_shared_factor_has_the_higher_rank(tmp_path: Path, parent: Path, tokens: Dataset):
    full = quantize("glowq", parent, tmp_path, tokens, rank=6).results
    ratio = full["added_bytes_ratio"] * (1 + 1e-9)
    found = {
        solver: quantize("glowq", parent, tmp_path / solver, tokens, solver=solver, added_bytes_ratio=ratio).results
        for solver in ("glowq", "qera_exact")
    }
    assert found["glowq"]["rank"] == 6
    assert 0 < found["qera_exact"]["rank"] < 6
    assert all(each["added_bytes_ratio"] <= ratio for each in found.values())
    added = full["bytes_after"] - quantize("rtn", parent, tmp_path, tokens).results["bytes_after"]
    assert added == pytest.approx(full["added_bytes"], abs=8000), "but for the names in the file's header"


def test_a_ratio_that_pays_for_no_rank_says_what_would(tmp_path: Path, parent: Path, tokens: Dataset):
    with pytest.raises(UserError, match="too small for a correction of rank 1, which adds 0") as caught:
        quantize("glowq", parent, tmp_path, tokens, added_bytes_ratio=0.001)
    assert "rank: 0" in caught.value.fix


@pytest.mark.parametrize("params", [{"rank": 0}, {"rank": 64}, {"added_bytes_ratio": 0.01}, {}])
def test_the_smallest_run_of_all_fits_a_generated_model(tmp_path: Path, params: dict[str, Any]):
    source = tiny_model(tmp_path / "generated")
    for solver in ("glowq", "zeroquant_v2"):
        smallest = GlowqParams(solver=solver, **params).smoke()
        stage, tokens = QuantizeGlowq(smallest), tokens_dataset(tmp_path / "data", source, num_windows=8)
        inputs = {"model": Model(source), "calibration": tokens}
        context = Context(inputs=inputs, out=tmp_path / solver, scratch=tmp_path / "scratch")
        stage.run(context)
        assert (context.results["rank"] > 0) == (params != {"rank": 0})


def test_rank_and_ratio_together_are_refused():
    with pytest.raises(ValidationError, match=r"rank: 3 and added_bytes_ratio: 0\.1: give one of them"):
        GlowqParams(rank=3, added_bytes_ratio=0.1)
    with pytest.raises(ValidationError, match=r"budget: 0\.5 and budget_bytes: 7: give one"):
        GlowqSelectedParams(budget=0.5, budget_bytes=7)


def test_equal_work_gives_equal_bytes(tmp_path: Path, parent: Path, tokens: Dataset):
    written = [
        {
            file.name: file.read_bytes()
            for file in quantize("glowq_s", parent, tmp_path / str(run), tokens, seed=run // 2).out.rglob("*")
            if file.is_file()
        }
        for run in range(3)
    ]
    assert written[0] == written[1]
    assert written[0]["model.safetensors"] != written[2]["model.safetensors"], "the seed draws the sketch"


def corrected(context: Context) -> set[str]:
    config = json.loads((context.output("model") / "config.json").read_text())
    groups = [group for graft in config.get("grafts", []) if graft["name"] == "lowrank" for group in graft["groups"]]
    return {member for group in groups for member in group["members"]}


def test_the_choice_grows_with_its_budget_from_the_base_to_the_whole(tmp_path: Path, parent: Path, tokens: Dataset):
    shares = (0.0, 0.3, 0.6, 1.0)
    runs = [quantize("glowq_s", parent, tmp_path / str(share), tokens, budget=share) for share in shares]
    chosen = [corrected(run) for run in runs]
    assert all(less < more for less, more in pairwise(chosen))
    full = quantize("glowq", parent, tmp_path, tokens).results
    for run, share in zip(runs, shares, strict=True):
        assert run.results["added_bytes"] <= share * full["added_bytes"]
    errors = [run.results["output_error"] for run in runs]
    assert errors == sorted(errors, reverse=True)
    for name, run in (("rtn", runs[0]), ("glowq", runs[-1])):
        same = (tmp_path / name / "model" / "model.safetensors") if name == "glowq" else None
        weights = same or quantize("rtn", parent, tmp_path, tokens).output("model") / "model.safetensors"
        assert (run.output("model") / "model.safetensors").read_bytes() == weights.read_bytes()


def test_the_report_draws_the_curve_and_names_its_knee(tmp_path: Path, parent: Path, tokens: Dataset):
    context = quantize("glowq_s", parent, tmp_path, tokens, score="error_drop")
    details = report(context)["details"]
    assert details["figures"] == ["restoration.svg"]
    assert "knee" in (context.output("report") / "restoration.svg").read_text()
    curve, scores = details["curve"], details["scores"]
    assert [scores[name] for name in curve["order"]] == sorted(scores.values(), reverse=True)
    assert len(curve["bytes"]) == len(curve["gains"]) == 9
    assert 0 <= details["knee"] <= 8
    assert context.results["knee_bytes_share"] == curve["bytes"][details["knee"]] / curve["bytes"][-1]


def test_a_budget_in_bytes_is_kept(tmp_path: Path, parent: Path, tokens: Dataset):
    assert quantize("glowq_s", parent, tmp_path, tokens, budget_bytes=5000).results["added_bytes"] <= 5000


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_the_base_stages_quantise_hybrids(tmp_path: Path, hybrid: Path, tokens: Dataset, method: str):
    context = quantize(method, hybrid, tmp_path, tokens, bits=8, skip=SKIP_GATES)
    out = context.output("model")
    config = json.loads((out / "config.json").read_text())
    assert [graft["name"] for graft in config["grafts"]] == ["hybrid_heads", "quantised"]
    assert "quantization_config" not in config
    assert context.results["kl_to_parent"] < 0.05
    assert context.results["bytes_ratio"] < 0.85
    assert torch.equal(logits(out, AutoModelForCausalLM.from_pretrained), logits(out))


def test_both_branches_of_a_hybrid_share_one_factor(tmp_path: Path, hybrid: Path, tokens: Dataset):
    context = quantize("glowq", hybrid, tmp_path, tokens, bits=3, skip=SKIP_GATES)
    groups = [set(each["members"]) for each in report(context)["details"]["corrections"]]
    names = {f"model.layers.0.self_attn.{branch}.{part}_proj" for branch in ("full", "linear") for part in "qkv"}
    assert any(names <= group for group in groups)
    assert context.results["output_error"] < context.results["output_error_uncorrected"]
    assert load_model(context.output("model"), dtype=torch.bfloat16).generate(IDS, max_new_tokens=2).shape == (2, 26)


@pytest.mark.parametrize("method", ["rtn", "gptq", "glowq"])
def test_tied_layers_are_quantised_once_on_the_inputs_of_all(
    tmp_path: Path, parent: Path, tokens: Dataset, method: str, monkeypatch: pytest.MonkeyPatch
):
    for name, target in REGISTERED.items():
        monkeypatch.setitem(GRAFTS, name, target)
    model = grafts.apply(load_model(parent, dtype=torch.bfloat16), [TiedMlps(targets=(1,))])
    save_model(model, tmp_path / "tied", tokenizer_from=parent)
    context = quantize(method, tmp_path / "tied", tmp_path, tokens)
    out = context.output("model")
    found = load_model(out, dtype=torch.bfloat16)
    up = [layer.mlp.up_proj for layer in found.model.layers]
    assert up[0].weight_packed is up[1].weight_packed
    assert not any("layers.1.mlp" in name for name in load_file(out / "model.safetensors"))
    assert context.results["quantised_share"] < 1
    assert context.results["kl_to_parent"] < 0.05
    if method == "glowq":
        assert up[0].correction.left is up[1].correction.left
        assert context.results["calibration_tokens"] == 16 * 32
        plain = quantize("rtn", tmp_path / "tied", tmp_path, tokens)
        assert context.results["kl_to_parent"] < plain.results["kl_to_parent"]


def test_each_expert_has_a_basis_of_its_own_and_routers_are_not_passed_by(
    tmp_path: Path, parent: Path, tokens: Dataset
):
    models = [load_model(parent, dtype=torch.bfloat16) for _ in range(2)]
    mixture = grafts.apply(models[0], [Experts(num_experts=2, top_k=2)], models=models[1:])
    save_model(mixture, tmp_path / "experts", tokenizer_from=parent)
    with pytest.raises(UserError, match=r"mlp\.router\.weight of shape \(2, 64\) is a weight outside nn\.Linear"):
        quantize("glowq", tmp_path / "experts", tmp_path, tokens)
    skip = ("lm_head", "*.router.weight")
    context = quantize("glowq", tmp_path / "experts", tmp_path, tokens, skip=skip)
    groups = [each["members"] for each in report(context)["details"]["corrections"]]
    inner = [[f"model.layers.0.mlp.experts.{n}.{part}_proj" for part in ("gate", "up")] for n in (0, 1)]
    assert all(group in groups for group in inner)
    assert context.results["output_error"] < context.results["output_error_uncorrected"]


def test_a_corrected_model_is_not_quantised_again(tmp_path: Path, parent: Path, tokens: Dataset):
    context = quantize("glowq", parent, tmp_path, tokens)
    for method in ("rtn", "glowq"):
        with pytest.raises(UserError, match="quantised already: it has the grafts quantised, lowrank"):
            quantize(method, context.output("model"), tmp_path / "again", tokens)


def test_a_base_without_grafts_is_refused_before_compute(tmp_path: Path, parent: Path, tokens: Dataset):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = shutil.copytree(parent, tmp_path / "neox")
    (source / "model.safetensors").unlink()
    save_model(GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=384, **sizes)), source, tokenizer_from=None)
    inputs = {"model": Model(source), "calibration": tokens}
    for stage in (QuantizeGlowq(GlowqParams()), QuantizeMixed(MixedParams())):
        with pytest.raises(UserError, match="the parts of a gpt_neox are not known: supported are gemma3_text, llama"):
            stage.check(inputs)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("model.layers.1.post_attention_layernorm.weight", r"input of model.layers.1.mlp.gate_proj holds \d+ values"),
        ("model.layers.0.mlp.up_proj.weight", r"model.layers.0.mlp.up_proj.weight holds 64 values"),
    ],
)
def test_numbers_that_are_none_are_named(tmp_path: Path, parent: Path, tokens: Dataset, weight: str, message: str):
    broken = shutil.copytree(parent, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors[weight][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        quantize("glowq", broken, tmp_path, tokens)


def test_sequence_calibrates_on_what_corrected_layers_give(tmp_path: Path, parent: Path, tokens: Dataset):
    one, other = (
        quantize("glowq", parent, tmp_path / str(flag), tokens, sequential=flag, bits=2) for flag in (False, True)
    )
    assert one.results["output_error"] != other.results["output_error"]
    first = "model.layers.0.self_attn.q_proj.correction.left"
    weights = [load_file(each.output("model") / "model.safetensors") for each in (one, other)]
    assert torch.equal(weights[0][first], weights[1][first])
