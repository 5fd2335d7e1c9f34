"""Quantised linears with low-rank corrections as grafts: one product with B a group, and never one of another input."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from grafts import GraftedForCausalLM, apply
from grafts.hybrid.graft import HybridHeads
from grafts.loader import load_model, save_model
from grafts.lowrank.graft import Group, LowRank, correction, fill
from grafts.lowrank.module import Correction, Projection, corrections
from grafts.quantised.graft import QuantisedLinears, quantised_linears
from grafts.quantised.linear import hold_weights
from grafts.registry import GRAFTS
from grafts.rtn import dequantise, quantise
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.grafts.toys import REGISTERED, Adapter, TiedMlps

INT4 = QuantisedLinears(bits=4, group_size=16, symmetric=False)
QKV = ("q_proj", "k_proj", "v_proj")
HEADS = ((0, 3), (1,), ())


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in REGISTERED.items():
        monkeypatch.setitem(GRAFTS, name, target)


def grouped(rank: int = 3, layers: int = 3) -> LowRank:
    groups = []
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        groups.append(tuple(f"{prefix}.self_attn.{name}" for name in QKV))
        groups.append((f"{prefix}.self_attn.o_proj",))
        groups.append((f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj"))
        groups.append((f"{prefix}.mlp.down_proj",))
    return LowRank(groups=tuple(Group(members=members, rank=rank) for members in groups))


def separate(rank: int = 3) -> LowRank:
    names = [name for group in grouped().groups for name in group.members]
    return LowRank(groups=tuple(Group(members=(name,), rank=rank) for name in names))


def randomise(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".left", ".right")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def corrected(family: str = "llama", graft: LowRank | None = None, base: PreTrainedModel | None = None):
    model = apply(base or tiny(family), [INT4, grouped() if graft is None else graft])
    randomise(model)
    return model


def logits(model: PreTrainedModel, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(tokens() if ids is None else ids).logits


def count(run: Callable[[], object]) -> int:
    """How often a right factor is multiplied with something during `run`."""
    with mock.patch.object(Projection, "product", autospec=True, side_effect=Projection.product) as product:
        run()
    return product.call_count


@pytest.mark.parametrize("family", FAMILIES)
def test_a_corrected_model_is_the_dense_one_with_codes_and_factors_multiplied_out(family: str):
    model, dense = corrected(family), tiny(family)
    for name, linear in dense.named_modules():
        if isinstance(linear, nn.Linear) and name != "lm_head":
            found = correction(model, name)
            codes = dequantise(quantise(linear.weight.data, 4, 16, symmetric=False))
            linear.weight.data = codes + (found.left @ found.right).data
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-3, atol=1e-4)


def test_four_products_a_layer_instead_of_seven():
    shared, own = corrected(), corrected(graft=separate())
    assert count(lambda: logits(shared)) == 4 * 3
    assert count(lambda: logits(own)) == 7 * 3
    shared.generation_config.max_new_tokens = 5
    assert count(lambda: shared.generate(tokens(), do_sample=False)) == 4 * 3 * 5


def group(outputs: tuple[int, ...] = (4, 2, 3)) -> list[Correction]:
    made = corrections(outputs, 2, 5)
    with torch.no_grad():
        for each in made:
            each.left.normal_()
        made[0].right.normal_()
    return made


def naive(each: Correction, x: Tensor) -> Tensor:
    return x @ each.right.T @ each.left.T


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_whatever_the_order_the_product_is_that_of_the_input(order: tuple[int, ...]):
    made = group()
    for batch in (2, 2, 3, 1):
        x = torch.randn(batch, 5)
        for index in order:
            torch.testing.assert_close(made[index](x), naive(made[index], x))
    assert made[0]._group[0]._handed is None, "nothing is kept after the last reader"


def test_readers_that_take_turns_on_two_inputs_never_mix_them_up():
    made, inputs = group(), [torch.randn(3, 5), torch.randn(3, 5)]
    for index, which in itertools.product(range(3), range(2)):
        torch.testing.assert_close(made[index](inputs[which]), naive(made[index], inputs[which]))


def test_an_input_that_died_hands_nothing_to_one_at_its_address():
    made = group()
    for _ in range(50):
        x = torch.randn(3, 5)
        torch.testing.assert_close(made[0](x), naive(made[0], x))
        del x


@pytest.mark.parametrize("change", ["input", "factor", "new factor", "autograd", "same reader"])
def test_a_product_left_over_is_not_used_when_something_changed(change: str):
    made, x = group(), torch.randn(3, 5)
    with torch.no_grad():
        made[0](x)
        if change == "input":
            x.mul_(2)
        elif change == "factor":
            made[0].right.mul_(2)
        elif change == "new factor":
            made[0]._group[0].right = nn.Parameter(torch.randn(2, 5))
    if change == "same reader":
        torch.testing.assert_close(made[0](x), naive(made[0], x))
    y = made[1](x)
    torch.testing.assert_close(y, naive(made[1], x))
    y.sum().backward()
    assert made[0].right.grad is not None, "the product of the pass without gradients has none"


def test_inference_mode_has_no_versions_and_works():
    model = corrected()
    with torch.inference_mode():
        assert torch.equal(model(tokens()).logits, logits(model))
        assert count(lambda: model(tokens())) == 12


def gradients(model: PreTrainedModel, checkpointing: dict | None) -> list[Tensor]:
    model.train()
    model.zero_grad()
    model.gradient_checkpointing_disable()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing)
    for ids in (tokens(), tokens(seed=1)):
        model(ids, labels=ids).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_checkpoints_give_the_same_gradients(reentrant: bool):
    shared = corrected()
    plain, recomputed = gradients(shared, None), gradients(shared, {"use_reentrant": reentrant})
    assert len(plain) == len(recomputed) > 40
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_products_of_their_own():
    shared = corrected()
    own = copy.deepcopy(shared)
    for name in quantised_linears(own):
        found = correction(own, name)
        found._group[0].num_readers = 1  # computed for each reader
    for one, other in zip(gradients(shared, None), gradients(own, None), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_it_computes_the_same_for_one_input_after_another(training: bool):
    made, graphs = group(), []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(sum(node.target is functional.linear for node in graph.graph.nodes))
        return graph.forward

    def run(x: Tensor) -> list[Tensor]:
        return [made[index](x) for index in (1, 0, 2)]

    compiled = torch.compile(run, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(training):
        for x in (torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5)):
            for found, index in zip(compiled(x), (1, 0, 2), strict=True):
                torch.testing.assert_close(found, naive(made[index], x))
    assert graphs == [6 if training else 4], "one product with B; for training the compiler merges equal ones"
    assert made[0]._group[0]._traced is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_saving_and_reading_keep_every_bit(dtype: torch.dtype, symmetric: bool, tmp_path: Path):
    base = tiny()
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype)
    model = apply(base, [INT4.model_copy(update={"symmetric": symmetric}), grouped()])
    randomise(model)
    model.save_pretrained(tmp_path)
    read, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info.values())
    state = read.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(read), logits(model))
    read.generation_config.eos_token_id = None
    cached, whole = (
        read.generate(tokens(), max_new_tokens=6, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)


def test_a_right_factor_is_stored_once_a_group():
    names = [name for name in corrected().state_dict() if name.endswith("right")]
    assert len(names) == 4 * 3
    assert "model.layers.0.self_attn.q_proj.correction.projection.right" in names


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_models_of_their_own_also_in_the_middle_of_a_group(clone):
    model = corrected()
    x = torch.randn(2, 32)
    model.model.layers[0].self_attn.q_proj(x)  # its product waits for k and v
    copied = clone(model)
    assert torch.equal(logits(copied), logits(model))
    correction(copied, "model.layers.0.self_attn.v_proj").right.data.zero_()
    assert not torch.equal(logits(copied), logits(model))


def test_building_makes_what_converting_makes():
    converted = corrected()
    with torch.device("meta"):
        built = GraftedForCausalLM(converted.config)
    shapes = [{name: (each.shape, each.dtype) for name, each in m.state_dict().items()} for m in (converted, built)]
    assert shapes[0] == shapes[1]
    assert logits(AutoModelForCausalLM.from_config(converted.config)).isfinite().all()


def test_the_identities_change_nothing():
    model = tiny()
    expected = logits(model)
    assert torch.equal(logits(apply(model, [INT4.identity(model.config), grouped().identity(model.config)])), expected)
    quantised = apply(tiny(), [INT4])
    expected = logits(quantised)
    assert torch.equal(logits(apply(quantised, [grouped()])), expected), "a correction starts as zero"


def test_a_linear_with_codes_is_the_dense_one_that_they_stand_for():
    model, dense = apply(tiny(), [INT4.model_copy(update={"bits_of": {"model.layers.1.mlp.up_proj": 8}})]), tiny()
    for name, linear in dense.named_modules():
        if isinstance(linear, nn.Linear) and name != "lm_head":
            bits = 8 if name == "model.layers.1.mlp.up_proj" else 4
            linear.weight.data = dequantise(quantise(linear.weight.data, bits, 16, symmetric=False))
    assert torch.equal(logits(model), logits(dense))


def test_holding_dense_weights_changes_nothing_and_follows_the_codes():
    model, x = corrected(), torch.randn(2, 32)
    expected = logits(model)
    hold_weights(model)
    linear = model.model.layers[0].self_attn.q_proj
    assert torch.equal(logits(model), expected)
    assert linear.weight is linear.weight
    linear.weight_scale.mul_(2)
    torch.testing.assert_close(linear(x) - linear.correction(x) - linear.bias, x @ dequantise(linear.quantised).T)
    model.bfloat16()
    assert linear.weight.dtype == torch.bfloat16
    hold_weights(model, False)
    assert linear._dense is None


def test_after_hybrid_heads_both_branches_share_one_factor(tmp_path: Path):
    hybrid = apply(tiny(), [HybridHeads(full_heads=HEADS)])
    names = [f"model.layers.0.self_attn.{branch}.{part}" for branch in ("full", "linear") for part in QKV]
    graft = LowRank(groups=(Group(members=tuple(names), rank=2),))
    skip = ("lm_head", "*.a_proj", "*.b_proj")
    model = apply(hybrid, [INT4.model_copy(update={"skip": skip}), graft])
    randomise(model)
    assert count(lambda: logits(model)) == 1
    save_model(model, tmp_path, tokenizer_from=None)
    assert torch.equal(logits(load_model(tmp_path, dtype=torch.float32)), logits(model))


def test_tied_layers_share_codes_and_factors_and_are_stored_once(tmp_path: Path):
    tied = apply(tiny(), [TiedMlps(targets=(1, 2))])
    model = corrected(base=tied)
    weights = [model.model.layers[layer].mlp.up_proj for layer in range(3)]
    assert weights[0].weight_packed is weights[1].weight_packed is weights[2].weight_packed
    assert weights[0].correction.left is weights[2].correction.left
    assert weights[0].correction.right is weights[2].correction.right
    save_model(model, tmp_path, tokenizer_from=None)
    read = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(read), logits(model))
    assert read.model.layers[2].mlp.up_proj.weight_packed is read.model.layers[0].mlp.up_proj.weight_packed
    assert count(lambda: logits(read)) == 12
    loaded = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    save_model(corrected(), tmp_path / "untied", tokenizer_from=None)
    assert loaded < sum(file.stat().st_size for file in (tmp_path / "untied").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("grafts", "reason"),
    [
        ([grouped()], "which the model does not have"),
        ([INT4, grouped(), grouped()], "cannot follow 'lowrank'"),
        ([INT4, HybridHeads(full_heads=HEADS)], "quantise last"),
        ([INT4, grouped(), HybridHeads(full_heads=HEADS)], "merge or drop it first"),
        ([INT4, INT4], "the model's linears is already grafted"),
        ([INT4.model_copy(update={"skip": ()})], "add lm_head to skip"),
        ([INT4, LowRank(groups=grouped().groups * 2)], "twice"),
    ],
)
def test_senseless_compositions_are_refused_before_anything_changes(grafts: list, reason: str):
    model = tiny()
    expected = logits(model)
    with pytest.raises(ValueError, match=reason):
        apply(model, grafts)
    assert torch.equal(logits(model), expected)


def test_groups_of_unknown_linears_or_of_two_widths_are_refused():
    names = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj")
    with pytest.raises(ValueError, match=r"widths \[32, 48\]"):
        apply(tiny(), [INT4, LowRank(groups=(Group(members=names, rank=1),))])
    with pytest.raises(ValueError, match=r"model\.nothing: no quantised linears"):
        apply(tiny(), [INT4, LowRank(groups=(Group(members=("model.nothing",), rank=1),))])


def test_factors_are_put_in_by_group_and_adapters_may_follow():
    model = apply(tiny(), [INT4, grouped(rank=2), Adapter()])
    which = model.config.grafts[1].groups[0]
    left, right = [torch.randn(size, 2) for size in (32, 16, 16)], torch.randn(2, 32)
    fill(model, which, left, right)
    assert torch.equal(correction(model, which.members[2]).left, left[2])
    assert torch.equal(correction(model, which.members[2]).right, right)
    with pytest.raises(ValueError, match="lm_head has no low-rank correction"):
        correction(model, "lm_head")
