"""Who reads what, and hidden states that go layer by layer as they go through the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from grafts.lowrank.covariance import Moments, output_change
from grafts.rtn import dequantise
from stages.errors import UserError
from stages.quantize.calibrate import Calibrated, Method, Solved, quantise_layers
from stages.quantize.flow import input_groups
from stages.quantize.layers import Layer
from stages.quantize.packed import Scheme
from stages.quantize.solvers import Awq, Gptq
from stages.quantize.stream import LayerStream
from stages.quantize.targets import targets
from stages.quantize.upgrade import Upgradable
from tests.evaluate.families import tiny

IDS = torch.randint(3, 96, (5, 24), generator=torch.Generator().manual_seed(0))
SCHEME = Scheme(4, 16, True)


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def groups_of_layer_0(family: str) -> list[set[str]]:
    model = tiny(family)
    found = input_groups(linears(model), lambda: model(input_ids=IDS))
    names = [[name.removeprefix("model.layers.0.") for name in group] for group in found if ".0." in group[0]]
    return [set(group) for group in names]


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_query_key_and_value_read_one_input_and_gate_and_up_another(family: str):
    assert groups_of_layer_0(family) == [
        {f"self_attn.{part}_proj" for part in "qkv"},
        {"self_attn.o_proj"},
        {"mlp.gate_proj", "mlp.up_proj"},
        {"mlp.down_proj"},
    ]


def test_a_parallel_block_has_all_five_read_one_input():
    assert {*(f"self_attn.{part}_proj" for part in "qkv"), "mlp.gate_proj", "mlp.up_proj"} in groups_of_layer_0(
        "cohere"
    )


def test_the_branches_of_a_hybrid_layer_and_a_shared_expert_are_found_by_their_input():
    found = groups_of_layer_0("qwen3_next")
    assert {"linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"} in found
    assert any({"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"} <= group for group in found)


class Odd(nn.Module):
    """Reads one tensor, then the same memory after a change in place, then an equal copy; one linear is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.changed, self.copied, self.unused = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) + self.b(x)
        z = self.copied(x.clone())
        x.mul_(2)
        return y + z + self.changed(x)


def test_equal_values_are_not_one_input_and_a_tensor_changed_in_place_is_another():
    model = Odd()
    found = input_groups(linears(model), lambda: model(torch.randn(3, 4)))
    assert found == [("a", "b"), ("copied",), ("changed",), ("unused",)]


def test_hooks_are_gone_afterwards_also_when_the_pass_fails():
    model = Odd()
    with pytest.raises(RuntimeError):
        input_groups(linears(model), lambda: model(torch.randn(3, 5)))
    assert not any(linear._forward_pre_hooks for linear in linears(model).values())


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere", "qwen3_next", "mistral", "qwen3_moe"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_layer_by_layer_is_the_whole_model(family: str, batch_size: int):
    model, seen = tiny(family), {}
    last = model.model.layers[1]
    with torch.no_grad():
        handle = last.register_forward_hook(lambda _, __, y: seen.update(y=y[0] if isinstance(y, tuple) else y))
        model(input_ids=IDS, use_cache=False)
        handle.remove()
    stream = LayerStream(model, IDS, batch_size)
    for name in stream.layers:
        for number, hidden in stream.run(name):
            stream.replace(number, hidden)
    torch.testing.assert_close(torch.cat(stream._hidden), seen["y"], rtol=1e-4, atol=1e-5)
    assert not any(layer._forward_pre_hooks for layer in stream.layers.values())


class Round(Method):
    """Rounds to nearest, and keeps what it was shown."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    def solve(self, layer: Layer) -> Mapping[str, Solved]:
        self.layers.append(layer)
        chosen = [(group, name) for group in layer.groups for name in group.chosen]
        weights = {name: layer.linears[name].weight.data for _, name in chosen}
        return {
            name: Solved(weights[name], SCHEME.round(weights[name]), group.covariance, layer.powers[name])
            for group, name in chosen
        }


def run(model: nn.Module, method: Method, *, sequential: bool = False, ids: torch.Tensor = IDS) -> Calibrated:
    chosen = targets(model, SCHEME.group_size, ("lm_head",))
    options = {"sequential": sequential, "batch_size": 2, "progress": lambda *_: None}
    return quantise_layers(model, ids, SCHEME, chosen, method, **options)


def calibrate(model: nn.Module, *, sequential: bool, ids: torch.Tensor = IDS) -> Round:
    run(model, method := Round(), sequential=sequential, ids=ids)
    return method


def whole_model_moments(model: nn.Module, name: str) -> Moments:
    moments = Moments(model.get_submodule(name).in_features)
    with torch.no_grad():
        handle = model.get_submodule(name).register_forward_pre_hook(lambda _, x: moments.add(x[0]))
        model(input_ids=IDS)
        handle.remove()
    return moments


@pytest.mark.parametrize("sequential", [False, True])
def test_moments_are_those_that_a_hook_in_the_whole_model_sees(sequential: bool):
    """In sequence: layer 1 sees what a quantised layer 0 gives. Otherwise: what the pretrained one gives."""
    reference, model = tiny("llama"), tiny("llama")
    found = calibrate(model, sequential=sequential)
    for index, layer in enumerate(found.layers):
        if index == 1 and sequential:
            reference.model.layers[0].load_state_dict(model.model.layers[0].state_dict())
        for group in layer.groups:
            expected = whole_model_moments(reference, group.readers[0])
            assert group.num_tokens == expected.num_tokens == IDS.numel()
            torch.testing.assert_close(group.covariance, expected.covariance(), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(group.magnitude, expected.mean_magnitude(), rtol=1e-3, atol=1e-5)


def test_sequence_changes_what_later_layers_see_and_nothing_of_the_first():
    plain, sequential = (calibrate(tiny("llama"), sequential=choice) for choice in (False, True))
    pairs = [zip(a.groups, b.groups, strict=True) for a, b in zip(plain.layers, sequential.layers, strict=True)]
    assert all(torch.equal(a.covariance, b.covariance) for a, b in pairs[0])
    assert not any(torch.equal(a.covariance, b.covariance) for a, b in pairs[1])


def test_inputs_that_are_not_finite_are_named():
    model = tiny("llama")
    model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(UserError, match=r"input of model\.layers\.1\.self_attn\.q_proj holds 48 values"):
        calibrate(model, sequential=False)


class OneOfTwo(nn.Module):
    """An expert that is used and one that never is."""

    def __init__(self, used: nn.Module, unused: nn.Module) -> None:
        super().__init__()
        self.used, self.unused = used, unused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


@pytest.mark.parametrize("method", [Gptq(SCHEME, "activation", 0.01), Gptq(SCHEME, "natural", 0.01), "awq"])
def test_an_expert_that_no_token_reaches_is_rounded_to_nearest_and_told(method):
    model, other = tiny("llama"), tiny("llama", seed=1)
    for layer, spare in zip(model.model.layers, other.model.layers, strict=True):
        layer.mlp = OneOfTwo(layer.mlp, spare.mlp)
    nearest = dequantise(SCHEME.round(model.model.layers[0].mlp.unused.up_proj.weight.data))
    found = run(model, Awq(model, SCHEME, 4) if method == "awq" else method)
    names = [f"model.layers.{layer}.mlp.unused.{part}_proj" for layer in (0, 1) for part in ("gate", "up", "down")]
    assert found.unseen == names
    assert torch.equal(model.model.layers[0].mlp.unused.up_proj.weight.data, nearest)
    assert found.output_errors[names[0]] == 0
    assert found.output_errors["model.layers.0.mlp.used.up_proj"] > 0


class Kept(Awq):
    """AWQ, and what it gave."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, SCHEME, 4)
        self.solved: dict[str, Solved] = {}
        self.powers: dict[str, float] = {}

    def solve(self, layer: Layer) -> dict[str, Solved]:
        self.powers.update(layer.powers)
        self.solved.update(found := super().solve(layer))
        return found


def kept_model() -> nn.Module:
    """Some channels between `up_proj` and `down_proj` are strong, so that scales move from one to the other."""
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[:4] *= 30
    return model


def test_errors_are_over_the_output_of_the_weight_that_was_rounded():
    """Also where AWQ took the scales of another linear's inputs out of its rows."""
    method = Kept(model := kept_model())
    found = run(model, method)
    for name, each in method.solved.items():
        weight, restored, sigma = (x.double() for x in (each.weight, each.restored, each.covariance))
        expected = (output_change(weight - restored, sigma) / output_change(weight, sigma)).sqrt().item()
        assert found.output_errors[name] == pytest.approx(expected, rel=1e-3)
    name = "model.layers.0.mlp.up_proj"
    assert method.details()["scaling"]["model.layers.0.mlp.down_proj"]["source"] == name
    assert method.solved[name].power < 0.5 * method.powers[name], "else this told nothing"


def test_upgrades_are_judged_by_the_same_output_and_hold_no_moments():
    method = Upgradable(Kept(model := kept_model()), upper := replace(SCHEME, bits=8), None)
    found = run(model, method)
    for name, each in method.upgrades.items():
        weight, sigma = (x.double() for x in (method.base.solved[name].weight, method.base.solved[name].covariance))
        left = output_change(weight - dequantise(upper.round(weight.float())).double(), sigma)
        expected = found.output_errors[name] ** 2 - (left / output_change(weight, sigma)).item()
        assert each.upgrade.drop == pytest.approx(expected, rel=1e-3)
        assert each.solved.covariance.untyped_storage().nbytes() == 0


def test_fewer_tokens_than_inputs_are_refused_before_compute():
    model = tiny("llama")
    with pytest.raises(UserError, match=r"1 windows of 24 tokens .* model.layers.0.mlp.down_proj .* 24 < 48") as caught:
        calibrate(model, sequential=False, ids=IDS[:1])
    assert "calibration_windows to 2 or more" in caught.value.fix


def test_linears_outside_the_layers_are_refused():
    model = tiny("llama", tie_word_embeddings=False)
    with pytest.raises(UserError, match="lm_head: outside the decoder layers"):
        quantise_layers(
            model,
            IDS,
            SCHEME,
            targets(model, SCHEME.group_size, ()),
            Round(),
            sequential=False,
            batch_size=2,
            progress=print,
        )


class FedByTheWindow(nn.Module):
    """A layer that also reads what the model makes of the window's tokens outside the layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, extra: torch.Tensor, **options) -> torch.Tensor:
        return self.layer(hidden, **options) + extra


def test_a_layer_that_is_given_more_than_its_input_is_refused():
    model = tiny("llama")
    for index in (0, 1):
        model.model.layers[index] = FedByTheWindow(model.model.layers[index])
    forward = model.forward
    model.forward = lambda input_ids, **options: forward(
        input_ids, extra=model.model.embed_tokens(input_ids), **options
    )
    with pytest.raises(UserError, match=r"model\.layers\.0 of LlamaForCausalLM is given more than its input"):
        LayerStream(model, IDS, 2)
