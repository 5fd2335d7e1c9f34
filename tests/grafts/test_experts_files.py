"""Mixtures from directories to a directory: the same bytes as in memory, as standard classes, one tensor at a time."""

from __future__ import annotations

import json
import re
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import grafts
from grafts.bases import decoder_layers
from grafts.experts import tensors
from grafts.experts.graft import Experts
from grafts.experts.settings import Making
from grafts.experts.stream import Checkpoint, build_mixture
from grafts.hybrid.graft import HybridHeads
from grafts.loader import load_model, save_model
from tests.grafts.families import FAMILIES, tiny, tokens
from tests.machine import one_thread as one_thread

MADE = Making(noise=0.1, drop=0.25)
PLAIN = {"llama": {"attention_bias": False}, "qwen2": {}}
WIDE = {"hidden_size": 64, "intermediate_size": 256}
STANDARD = {"llama": "MixtralForCausalLM", "mistral": "MixtralForCausalLM", "qwen3": "Qwen3MoeForCausalLM"}


def sources(directory: Path, family: str = "llama", count: int = 3, **changes) -> list[Path]:
    paths = [directory / f"source-{number}" for number in range(count)]
    for seed, path in enumerate(paths):
        save_model(tiny(family, seed=seed, **{**PLAIN.get(family, {}), **changes}), path, tokenizer_from=None)
    return paths


def in_memory(paths: list[Path], graft: Experts):
    first, *others = (load_model(path, dtype=torch.float32) for path in paths)
    return grafts.apply(first, [graft], models=others).eval()


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [{"attention": "kv-expert"}, {"attention": "kv-shared", "split": 2}], ids=str)
def test_built_from_files_is_built_in_memory_to_the_byte(family, fields, tmp_path):
    paths, graft = sources(tmp_path, family), Experts(num_experts=3, making=MADE, **fields)
    built = build_mixture(paths, graft, tmp_path / "streamed")
    mixture = in_memory(paths, graft)
    save_model(mixture, tmp_path / "saved", tokenizer_from=paths[0])
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes(), name
    assert built.class_name == type(mixture).__name__
    assert built.num_parameters == sum(parameter.numel() for parameter in mixture.parameters())


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("family", STANDARD)
def test_a_standard_class_is_saved_as_one_and_computes_the_same(family, split, tmp_path):
    paths, graft = sources(tmp_path, family), Experts(num_experts=3, split=split, making=MADE)
    built = build_mixture(paths, graft, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert built.class_name == type(model).__name__ == STANDARD[family]
    assert model.__module__.startswith("transformers.")
    with torch.no_grad():
        expected = in_memory(paths, graft)(tokens(), output_router_logits=True)
        found = model(tokens(), output_router_logits=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.router_logits, expected.router_logits, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    ours, theirs = weights(tmp_path / "out"), weights(tmp_path / "again")
    assert ours.keys() == theirs.keys(), "the names that transformers writes, so that others read them"
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("family", STANDARD)
def test_the_standard_class_weighs_the_balance_as_the_graft_does(family, split, tmp_path):
    paths = sources(tmp_path, family, num_hidden_layers=1)  # of several layers, the standard loss pools the loads
    graft = Experts(num_experts=3, split=split, balance_weight=0.5, z_weight=0)
    build_mixture(paths, graft, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    asked = {"labels": tokens(), "output_router_logits": True}
    with torch.no_grad():
        torch.testing.assert_close(model(tokens(), **asked).loss, in_memory(paths, graft)(tokens(), **asked).loss)


@pytest.mark.parametrize(
    ("family", "changes", "fields"),
    [
        ("llama", {"attention_bias": True}, {}),
        ("llama", {}, {"renormalise": False}),
        ("llama", {}, {"capacity": 1.5}),
        ("llama", {}, {"block": "parallel"}),
        ("qwen2", {}, {}),
        ("gemma3_text", {}, {}),
    ],
)
def test_what_is_no_standard_class_stays_a_graft(family, changes, fields, tmp_path):
    paths, graft = sources(tmp_path, family, 2, **changes), Experts(num_experts=2, **fields)
    assert build_mixture(paths, graft, tmp_path / "out").class_name.startswith("Grafted")
    with torch.no_grad():
        found = load_model(tmp_path / "out", dtype=torch.float32)(tokens()).logits
        assert torch.equal(found, in_memory(paths, graft)(tokens()).logits)


def test_raw_gates_are_a_standard_class_over_qwen3(tmp_path):
    build_mixture(sources(tmp_path, "qwen3", 2), Experts(num_experts=2, renormalise=False), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["norm_topk_prob"] is False


def test_experts_beside_hybrid_heads_come_from_hybrid_sources(tmp_path):
    heads = HybridHeads(full_heads=((0, 1), None, ()))
    paths = [tmp_path / f"hybrid-{seed}" for seed in range(2)]
    for seed, path in enumerate(paths):
        save_model(grafts.apply(tiny(seed=seed), [heads]), path, tokenizer_from=None)
    graft = Experts(num_experts=2)
    build_mixture(paths, graft, tmp_path / "out")
    found = load_model(tmp_path / "out", dtype=torch.float32)
    assert [each.name for each in found.config.grafts] == ["hybrid_heads", "experts"]
    with torch.no_grad():
        assert torch.equal(found(tokens()).logits, in_memory(paths, graft)(tokens()).logits)


def test_shards_have_an_index_and_hold_what_one_file_holds(tmp_path):
    paths, graft = sources(tmp_path), Experts(num_experts=3, attention="kv-expert")
    build_mixture(paths, graft, tmp_path / "whole")
    build_mixture(paths, graft, tmp_path / "cut", shard_bytes=60_000)
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 3
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    index = json.loads((tmp_path / "cut/model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == whole.keys()
    with torch.no_grad():
        models = [load_model(tmp_path / name, dtype=torch.float32) for name in ("whole", "cut")]
        assert torch.equal(*(model(tokens()).logits for model in models))


class Alive(TorchDispatchMode):
    """The most bytes that tensors made meanwhile have held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.users: Counter[int] = Counter()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self.keep(tensor)
        return result

    def keep(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        self.held[place] = storage.nbytes()
        self.users[place] += 1
        self.peak = max(self.peak, sum(self.held.values()))
        weakref.finalize(tensor, self.leave, place)

    def leave(self, place: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            del self.held[place]


def peak_of_building(directory: Path, num_experts: int, monkeypatch, **fields) -> int:
    paths, alive = sources(directory, "mistral", num_experts, **WIDE), Alive()
    original = Checkpoint.rows

    def rows(self, *args):
        tensor = original(self, *args)
        alive.keep(tensor)
        return tensor

    with monkeypatch.context() as patched, alive:
        patched.setattr(Checkpoint, "rows", rows)
        patched.setattr(tensors, "BLOCK_ELEMENTS", 2**10)
        build_mixture(paths, Experts(num_experts=num_experts, making=MADE, **fields), directory / "out")
    return alive.peak


@pytest.mark.parametrize("attention", [None, "kv-expert"])
def test_building_holds_a_few_tensors_whatever_the_number_of_experts(attention, tmp_path, monkeypatch):
    few, many = (peak_of_building(tmp_path / str(count), count, monkeypatch, attention=attention) for count in (2, 8))
    layer = sum(parameter.nbytes for parameter in decoder_layers(tiny("mistral", **WIDE))[0].parameters())
    assert few <= layer < sum(tensor.nbytes for tensor in weights(tmp_path / "2/source-0").values()) / 3
    assert many <= few + 8 * 4 * 2 * 2**10, "at most a block of each source more, where they are averaged"


def test_differing_sources_are_refused_before_any_weight_is_read(tmp_path):
    first, second = sources(tmp_path, count=2)
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    (second / "model.safetensors").write_bytes(b"unread")
    with pytest.raises(ValueError, match=r"has rms_norm_eps 1e-06, .* has 0.001"):
        build_mixture([first, second], Experts(num_experts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_lacks_a_tensor_is_named(tmp_path):
    first, second = sources(tmp_path, count=2)
    held = weights(second)
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, second / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"source-1 lack model\.layers\.1\.mlp\.up_proj"):
        build_mixture([first, second], Experts(num_experts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "changed"),
    [("model.layers.1.mlp.up_proj.weight", (9, 32)), ("model.embed_tokens.weight", (9, 32)), ("model.norm.weight", ())],
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_source_whose_weights_are_not_of_its_config_is_refused_before_anything_is_written(
    number, name, changed, tmp_path
):
    paths = sources(tmp_path, count=2)
    held = weights(paths[number])
    shape = list(held[name].shape)
    save_file({**held, name: torch.zeros(changed)}, paths[number] / "model.safetensors", metadata={"format": "pt"})
    told = f"source-{number} have {name} of shape {list(changed)}, its config.json says {shape}"
    with pytest.raises(ValueError, match=re.escape(told)):
        build_mixture(paths, Experts(num_experts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_are_stored_in_the_seed_s_type(tmp_path):
    first, second = sources(tmp_path, count=2)
    model = load_model(first, dtype=torch.bfloat16)
    save_model(model, first, tokenizer_from=None)
    build_mixture([first, second], Experts(num_experts=2), tmp_path / "out")
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
