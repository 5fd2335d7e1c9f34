"""Conversion and alignment as stages: identities of the structure, and that each layer learns alone."""

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

import grafts
from grafts.hybrid.cache import cache_bytes
from grafts.hybrid.graft import HybridHeads, mixers
from grafts.loader import load_model, save_model, stored_dtype
from stages.artifacts import Model, Report, write_report
from stages.data.windows import TokenWindows
from stages.errors import UserError
from stages.stage import Context, Resources
from stages.transfer.align import AlignParameters, TransferAlign
from stages.transfer.convert import ConvertParams, TransferConvert, _sizes
from stages.transfer.distill import TransferDistill, TransferDistillParams
from stages.transfer.mixers import load_mixers, relative_errors, teacher_calls
from stages.upcycle.sparse import UpcycleSparse
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.tiny import tiny_model, tokens_dataset
from tests.upcycle.families import curve
from tests.upcycle.families import run as upcycle

AS_TEACHER = {"normalise": False, "full_rope": True, "full_length_scale": None, "full_output_gate": False}
SOME = ((0, 3), ())
QUICK = {"batch_sequences": 8, "precision": "fp32", "heldout_windows": 8}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("transfer")
    path = tiny_model(root / "teacher", hidden=64)
    data = tokens_dataset(root / "data", path, num_windows=64, sequence_length=32)
    heldout = tokens_dataset(root / "heldout", path, num_windows=8, sequence_length=32, seed=9)
    return {"model": Model(path), "data": data, "heldout": heldout}


def convert(inputs: dict, directory: Path, **params) -> Context:
    stage = TransferConvert(ConvertParams(**params))
    stage.check(inputs)
    context = Context(inputs, out=directory / "out", scratch=directory / "scratch")
    stage.run(context)
    return context


def align(inputs: dict, student: Model, directory: Path, **params) -> Context:
    given = {"teacher": inputs["model"], "student": student, "data": inputs["data"], "heldout": inputs["heldout"]}
    stage = TransferAlign(AlignParameters(**{**QUICK, **params}))
    stage.preflight()
    stage.check(given)
    events: list[dict] = []
    context = Context(given, directory / "out", directory / "scratch", resources=Resources(), emit=events.append)
    stage.run(context)
    context.events = events  # type: ignore[attr-defined]
    return context


@pytest.fixture(scope="module")
def student(inputs, tmp_path_factory) -> Model:
    directory = tmp_path_factory.mktemp("student")
    convert(inputs, directory, full_heads=SOME)
    return Model(directory / "out/model")


def test_all_heads_kept_as_the_teacher_has_them_is_the_teacher(inputs, tmp_path):
    everything = ((0, 1, 2, 3), (0, 1, 2, 3))
    found = convert(inputs, tmp_path, full_heads=everything, **AS_TEACHER).results
    assert found["kl_to_parent"] < 1e-10
    assert (found["full_share"], found["cache_bytes_ratio"], found["kv_groups_kept"]) == (1, 1, 4)
    assert convert(inputs, tmp_path / "b", full_heads=everything).results["kl_to_parent"] > 1e-6, "the switches count"


def test_the_result_loads_generates_and_says_what_it_is(inputs, student):
    model = AutoModelForCausalLM.from_pretrained(student.path)
    assert isinstance(model, grafts.GraftedForCausalLM)
    assert mixers(model).keys() == {0, 1}
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert out.shape[1] <= 7
    assert [graft["name"] for graft in student.grafts] == ["hybrid_heads"]
    assert student.tokenizer_fingerprint == inputs["model"].tokenizer_fingerprint


def test_a_selection_says_which_heads_stay(inputs, tmp_path):
    write_report(tmp_path / "selection", "Selected heads", {}, {"full_heads": [[1], [2]]})
    found = convert({**inputs, "selection": Report(tmp_path / "selection")}, tmp_path)
    assert Model(tmp_path / "out/model").grafts[0]["full_heads"] == [[1], [2]]
    assert found.results["full_heads"] == 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "neither of `full_heads`"),
        ({"full_heads": ((0,),)}, "^full_heads: .* 1 layers are selected, the model has 2"),
        ({"full_heads": ((0,), (4,))}, r"^full_heads: head 4 is selected(.|\n)*fix: give a list of heads from 0 to 3"),
        ({"full_heads": (None, None)}, "^full_heads: .* nothing to convert"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_compute(inputs, tmp_path, params, message):
    with pytest.raises(UserError, match=message):
        convert(inputs, tmp_path, **params)


def test_a_selection_of_another_model_is_refused_before_compute(inputs, tmp_path):
    write_report(tmp_path / "selection", "Selected heads", {}, {"full_heads": [[1], [4]]})
    stage, selection = TransferConvert(ConvertParams()), Report(tmp_path / "selection")
    with pytest.raises(UserError, match=r"^selection: head 4 is selected(.|\n)*fix: select with scores of this very"):
        stage.check({**inputs, "selection": selection})


@pytest.mark.parametrize("others", ["gated_deltanet", "sliding_window"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ratio_of_the_caches_is_that_of_caches(family, others):
    teacher = tiny(family, max_position_embeddings=24)
    graft = HybridHeads(full_heads=(None, (0, 1), (2,)), others=others, window=5, sinks=2)
    hybrid = grafts.apply(tiny(family, max_position_embeddings=24), [graft])
    held = [cache_bytes(model(tokens(1, 24), use_cache=True).past_key_values) for model in (hybrid, teacher)]
    assert _sizes(hybrid, graft)["cache_bytes_ratio"] == pytest.approx(held[0] / held[1])


def test_heads_that_are_named_twice_and_rates_that_fall_are_refused_in_the_file():
    with pytest.raises(ValidationError, match=r"full_heads: layer 1 names a head twice: \[0, 0\]"):
        ConvertParams(full_heads=((0,), (0, 0)))
    with pytest.raises(ValidationError, match=r"linear_forgetting: \[0.1, 0.001\] falls"):
        ConvertParams(linear_forgetting=(0.1, 0.001))


def test_a_base_without_known_heads_is_refused_before_compute(inputs, tmp_path):
    upcycle(UpcycleSparse, {"model": inputs["model"]}, tmp_path, num_experts=2)
    with pytest.raises(UserError, match=r"unsupported base: .* of the type 'mixtral'"):
        TransferConvert(ConvertParams(full_heads=SOME)).check({**inputs, "model": Model(tmp_path / "out/model")})


def test_what_the_graft_refuses_is_told_as_an_error_of_the_input(inputs, tmp_path):
    write_report(tmp_path / "selection", "Selected heads", {}, {"full_heads": [[1], [2, 2]]})
    with pytest.raises(UserError, match=r"^selection: full_heads: expected different heads, counted from 0, in each"):
        convert({**inputs, "selection": Report(tmp_path / "selection")}, tmp_path)
    shutil.copytree(inputs["model"].path, tmp_path / "both")
    model = load_model(inputs["model"].path, dtype=torch.float32)
    model.config.use_bidirectional_attention = True
    save_model(model, tmp_path / "both", tokenizer_from=None)
    with pytest.raises(UserError, match="attends in both directions"):
        convert({**inputs, "model": Model(tmp_path / "both")}, tmp_path, full_heads=SOME)


def test_a_converted_model_is_not_converted_again(inputs, student, tmp_path):
    with pytest.raises(UserError, match="converted already: it carries the grafts hybrid_heads"):
        convert({**inputs, "model": student}, tmp_path, full_heads=SOME)


def test_calibrated_gains_start_nearer_to_the_teacher(inputs, tmp_path):
    without = {name: value for name, value in inputs.items() if name != "data"}
    windows = TokenWindows(inputs["heldout"], tmp_path / "w").tensor()
    teacher, errors = load_model(inputs["model"].path, dtype=torch.float32), {}
    for name, given in (("calibrated", inputs), ("ones", without)):
        convert(given, tmp_path / name, full_heads=SOME)
        found = relative_errors(load_mixers(tmp_path / name / "out/model", teacher), teacher, windows, 4)
        errors[name] = sum(found.values())
    assert errors["calibrated"] < 0.5 * errors["ones"]


def test_alignment_brings_every_layer_nearer_and_leaves_the_rest(inputs, student, tmp_path):
    before = align(inputs, student, tmp_path / "a", tokens=1, learning_rate=1e-12)
    after = align(inputs, student, tmp_path / "b", tokens=60 * 8 * 32, learning_rate=1e-2)
    errors = [Report(tmp_path / name / "out/report").content["details"]["layer_error"] for name in ("a", "b")]
    assert all(errors[1][layer] < 0.7 * errors[0][layer] for layer in ("0", "1"))
    assert after.results["layer_error"] < before.results["layer_error"]
    weights = [load_model(path, dtype=torch.float32).state_dict() for path in (student.path, tmp_path / "b/out/model")]
    changed = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert changed
    assert all(".self_attn." in name for name in changed)


@pytest.mark.usefixtures("bare_cpu")
def test_errors_are_those_of_the_layers_that_were_written(inputs, student, tmp_path):
    align(inputs, student, tmp_path, precision="auto", tokens=4 * 8 * 32, learning_rate=1e-2)
    assert stored_dtype(tmp_path / "out/model") == torch.bfloat16
    teacher, windows = load_model(inputs["model"].path, dtype=torch.float32), TokenWindows(inputs["heldout"], tmp_path)
    written = load_mixers(tmp_path / "out/model", teacher)
    expected = {str(layer): e for layer, e in relative_errors(written, teacher, windows.tensor(8), 4).items()}
    assert Report(tmp_path / "out/report").content["details"]["layer_error"] == expected


def test_layers_learn_alone(inputs, student):
    teacher = load_model(inputs["model"].path, dtype=torch.float32).requires_grad_(False)
    trained = load_mixers(student.path, teacher)
    ids = torch.arange(24).reshape(2, 12)
    calls = teacher_calls(teacher, ids)
    before = trained(calls)
    before[1].backward()
    assert not any(
        parameter.grad is not None and parameter.grad.any() for parameter in trained.mixers["0"].parameters()
    )
    assert all(parameter.grad.any() for parameter in trained.mixers["1"].parameters() if parameter.numel() > 8)
    with torch.no_grad():
        trained.mixers["0"].o_proj.weight.add_(1)
    after = trained(calls)
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert torch.equal(teacher_calls(teacher, ids)[1].output, calls[1].output), "the teacher has not moved"


def test_recomputed_activations_give_the_same_weights(inputs, student, tmp_path):
    for name, recompute in (("a", False), ("b", True)):
        align(inputs, student, tmp_path / name, tokens=3 * 8 * 32, activation_checkpointing=recompute)
    first, second = ((tmp_path / name / "out/model/model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_held_out_loss_has_a_curve_while_aligning(inputs, student, tmp_path):
    context = align(inputs, student, tmp_path, tokens=6 * 8 * 32, learning_rate=1e-2, evaluate_every=3)
    losses = curve(context, "heldout_loss")
    assert len(losses) == 2
    assert losses[1] < losses[0]


@pytest.mark.parametrize("stage", [TransferAlign(AlignParameters()), TransferDistill(TransferDistillParams())])
def test_what_is_no_pair_of_a_teacher_and_its_student_is_refused_before_compute(stage, inputs, student, tmp_path):
    teacher, other = inputs["model"], Model(tiny_model(tmp_path / "other", hidden=32))
    stage.check({**inputs, "teacher": teacher, "student": student})
    for pair, message in (
        ((teacher, teacher), "^student: the student, a llama, has no hybrid heads"),
        ((other, student), "^student: the teacher has hidden_size 32, the student 64"),
        ((student, student), r"^teacher: the teacher has grafts \(hybrid_heads\)"),
    ):
        with pytest.raises(UserError, match=message):
            stage.check({**inputs, "teacher": pair[0], "student": pair[1]})


def test_a_converted_model_can_be_a_source_again(student, tmp_path):
    from stages.source.model import SourceModel, SourceModelParams

    SourceModel(SourceModelParams(model=str(student.path), dtype="float32")).run(
        Context({}, out=tmp_path / "out", scratch=tmp_path / "scratch")
    )
    again, first = (load_model(path, dtype=torch.float32) for path in (tmp_path / "out/model", student.path))
    ids = torch.arange(12)[None]
    assert torch.equal(again(ids).logits, first(ids).logits)


def test_layers_of_a_converted_teacher_are_not_dropped(inputs, student):
    from stages.distill.logits import DistillLogits, DistillParameters

    given = {**inputs, "teacher": student}
    with pytest.raises(UserError, match="has grafts"):
        DistillLogits(DistillParameters()).check(given)
