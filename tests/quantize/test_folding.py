"""Places that can take scales: found, used, and left alone where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from stages.quantize.flow import input_groups
from stages.quantize.folding import find_source, scale_readers, tied_parameters
from stages.quantize.layers import Layer
from stages.quantize.stream import LayerStream
from tests.evaluate.families import tiny

IDS = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))


def uneven(family: str, **changes) -> PreTrainedModel:
    """Norms as after training: no two weights alike."""
    model, generator = tiny(family, **changes), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def layer_of(model: PreTrainedModel) -> tuple[Layer, list[tuple[str, ...]]]:
    stream = LayerStream(model, IDS, 2)
    name, module = next(iter(stream.layers.items()))
    linears = {f"{name}.{part}": each for part, each in module.named_modules() if isinstance(each, nn.Linear)}
    groups = input_groups(linears, lambda: stream.probes[name].run(module))
    return Layer(name, module, linears, [], stream.probes[name], {}), groups


def sources(model: PreTrainedModel) -> dict[str, str | None]:
    layer, groups = layer_of(model)
    found = {}
    for readers in groups:
        source = find_source(layer, readers, set(layer.linears), tied_parameters(model))
        found[readers[0].rpartition(".")[2]] = source and source.name.removeprefix(f"{layer.name}.")
    return found


def test_norms_take_the_scales_of_attention_and_mlp_and_up_those_of_down():
    expected = {"q_proj": "input_layernorm", "gate_proj": "post_attention_layernorm", "down_proj": "mlp.up_proj"}
    assert sources(uneven("llama")) == {**expected, "o_proj": None}, "two heads read one value head"
    one_each = uneven("llama", num_key_value_heads=2)
    assert sources(one_each) == {**expected, "o_proj": "self_attn.v_proj"}


def test_norms_around_a_block_are_told_apart():
    expected = {"q_proj": "input_layernorm", "o_proj": None, "down_proj": "mlp.up_proj"}
    assert sources(uneven("gemma2")) == {**expected, "gate_proj": "pre_feedforward_layernorm"}


def test_one_norm_before_a_parallel_block_takes_the_scales_of_all_five():
    assert sources(uneven("cohere"))["q_proj"] == "input_layernorm"


def test_an_input_that_something_else_reads_too_has_no_source():
    """The experts of this layer are one fused tensor that reads the same input as the router."""
    assert sources(uneven("qwen3_moe", num_key_value_heads=2)) == {
        "q_proj": "input_layernorm",
        "o_proj": "self_attn.v_proj",
    }
    layer, _ = layer_of(model := uneven("qwen3_next"))
    router = [name for name in layer.linears if name.endswith("shared_expert_gate")]
    assert find_source(layer, router, set(layer.linears), tied_parameters(model)) is None


class OneOfTwo(nn.Module):
    """An expert that the probe reaches and one that it does not."""

    def __init__(self, used: nn.Module, unused: nn.Module) -> None:
        super().__init__()
        self.used, self.unused = used, unused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_what_the_probe_does_not_reach_has_no_source():
    """Nothing would change whatever is scaled: only other tokens would show that it was wrong."""
    model, other = uneven("llama"), uneven("llama", seed=1)
    for layer, spare in zip(model.model.layers, other.model.layers, strict=True):
        layer.mlp = OneOfTwo(layer.mlp, spare.mlp)
    layer, _ = layer_of(model)
    found = {name: find_source(layer, (name,), set(layer.linears), set()) for name in layer.linears if ".mlp." in name}
    taken = {name.removeprefix("model.layers.0.mlp."): source and source.name for name, source in found.items()}
    assert {name: taken[name] for name in taken if name.startswith("unused")} == dict.fromkeys(
        ("unused.gate_proj", "unused.up_proj", "unused.down_proj")
    )
    assert taken["used.down_proj"] == "model.layers.0.mlp.used.up_proj"


def test_a_kept_linear_is_not_changed():
    model = uneven("llama")
    layer, groups = layer_of(model)
    down = next(group for group in groups if group[0].endswith("down_proj"))
    assert find_source(layer, down, set(down), tied_parameters(model)) is None


def test_tied_parameters_are_not_changed():
    model = uneven("llama")
    model.model.layers[1].input_layernorm.weight = model.model.layers[0].input_layernorm.weight
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    found = sources(model)
    assert found["q_proj"] is None
    assert found["down_proj"] is None
    assert found["gate_proj"] == "post_attention_layernorm"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "qwen3_next"])
def test_looking_changes_nothing_and_scaling_leaves_what_is_computed(family: str, dtype: torch.dtype):
    model = uneven(family).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(input_ids=IDS).logits.float()
    layer, groups = layer_of(model)
    found = {readers: find_source(layer, readers, set(layer.linears), set()) for readers in groups}
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    for readers, source in found.items():
        if source is not None:
            factors = torch.rand(layer.linears[readers[0]].in_features) + 0.5
            source.scale(1 / factors)
            scale_readers(layer, readers, factors)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    moved = torch.linalg.vector_norm(model(input_ids=IDS).logits.float() - logits) / torch.linalg.vector_norm(logits)
    assert moved < (1e-5 if dtype == torch.float32 else 0.05)
