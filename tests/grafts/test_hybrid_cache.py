from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from grafts import GraftedForCausalLM, apply
from grafts.hybrid.cache import HybridCacheLayer, cache_bytes
from grafts.hybrid.graft import HybridHeads, mixers
from grafts.hybrid.settings import DeltaNet
from tests.grafts.families import FAMILIES, tiny, tokens

HEADS = ((0, 3), (1,), ())
GRAFTS = {
    "linear": HybridHeads(full_heads=HEADS),
    "linear, no conv": HybridHeads(full_heads=HEADS, deltanet=DeltaNet(conv=None)),
    "windows": HybridHeads(full_heads=HEADS, others="sliding_window", window=5),
    "windows and sinks": HybridHeads(full_heads=HEADS, others="sliding_window", window=5, sinks=2),
}


def filled(model: GraftedForCausalLM, length: int = 12, rows: int = 2) -> DynamicCache:
    with torch.no_grad():
        return model(tokens(rows, length), use_cache=True).past_key_values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [3, 12])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", GRAFTS)
def test_bytes_are_counted_by_groups(name: str, family: str, length: int, dtype: torch.dtype):
    model = apply(tiny(family), [GRAFTS[name]]).to(dtype)
    expected = sum(mixer.cache_bytes(2, length, dtype) for mixer in mixers(model).values())
    assert cache_bytes(filled(model, length)) == expected


def test_a_layer_keeps_the_groups_of_its_softmax_heads_and_nothing_that_grows_without_them():
    model = apply(tiny(), [GRAFTS["linear"]])
    short, long = filled(model, 10), filled(model, 20)
    sizes = [cache.layers[index].stores["full"].keys.shape for cache in (short, long) for index in (0, 1)]
    assert [tuple(size) for size in sizes] == [(2, 2, 10, 8), (2, 1, 10, 8), (2, 2, 20, 8), (2, 1, 20, 8)]
    assert long.layers[2].stores == {}
    kept = [sum(tensor.numel() for tensor in cache.layers[2].tensors()) for cache in (short, long)]
    assert kept[0] == kept[1] == 2 * (4 * 8 * 8 + 3 * 32 * 3)
    assert cache_bytes(long) - cache_bytes(short) == 2 * (2 + 1) * 2 * 8 * 10 * 4


def test_plain_caches_are_counted_too():
    assert cache_bytes(filled(tiny(), 10)) == 2 * 3 * 2 * 2 * 8 * 10 * 4
    assert cache_bytes(DynamicCache(config=tiny().config)) == 0


@pytest.mark.parametrize("given", ["none", "empty", "of the config", "of the base"])
def test_any_dynamic_cache_will_do(given: str):
    model, ids = apply(tiny("qwen2"), [GRAFTS["linear"]]), tokens()
    caches = {
        "none": None,
        "empty": DynamicCache(),
        "of the config": DynamicCache(config=model.config),
        "of the base": DynamicCache(config=model.config.base),
    }
    with torch.no_grad():
        expected = model(ids).logits[:, -1:]
        cache = model(ids[:, :-1], past_key_values=caches[given], use_cache=True).past_key_values
        found = model(ids[:, -1:], past_key_values=cache).logits
    if given != "empty":  # without a config, a sliding layer is cached whole, by the base too
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert all(isinstance(layer, HybridCacheLayer) for layer in cache.layers)


def test_rows_are_chosen_repeated_and_reordered_together():
    model = apply(tiny(), [GRAFTS["linear"]])
    rows = tokens(3, 12)
    for change, expected in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0])), rows[[2, 2, 0]]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), rows[[1]]),
        (lambda cache: cache.batch_repeat_interleave(2), rows[[0, 0, 1, 1, 2, 2]]),
    ):
        cache = filled(model, rows=3)
        change(cache)
        with torch.no_grad():
            reference = model(expected, use_cache=True).past_key_values
        for found, wanted in zip(cache.layers, reference.layers, strict=True):
            for one, other in zip(found.tensors(), wanted.tensors(), strict=True):
                torch.testing.assert_close(one, other)


def test_a_reset_cache_is_as_new():
    model = apply(tiny(), [GRAFTS["linear"]])
    cache = filled(model)
    cache.reset()
    assert cache.get_seq_length() == cache_bytes(cache) == 0
    with torch.no_grad():
        again = model(tokens(2, 12), past_key_values=cache, use_cache=True)
        assert torch.equal(again.logits, model(tokens(2, 12)).logits)


def test_states_cannot_be_cropped():
    cache = filled(apply(tiny(), [GRAFTS["linear"]]))
    assert not cache.is_croppable
    with pytest.raises(RuntimeError, match="cannot be cropped"):
        cache.crop(-2)
    assert cache.get_seq_length() == 12


def test_windows_that_moved_on_cannot_be_cropped():
    cache = filled(apply(tiny(), [GRAFTS["windows"]]))
    assert not cache.is_croppable
    with pytest.raises(RuntimeError, match="does not track past states"):
        cache.crop(-2)


def test_a_refused_crop_changes_nothing():
    model = apply(tiny(), [GRAFTS["windows"]])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(tokens(2, 6)).logits[:, 4:]
        model(tokens(2, 6)[:, :4], past_key_values=cache)
        with pytest.raises(RuntimeError, match="does not track past states"):
            cache.crop(-2)
        found = model(tokens(2, 6)[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_softmax_heads_alone_can_be_cropped():
    model = apply(tiny(), [HybridHeads(full_heads=((0, 1, 2, 3),) * 3)])
    cache, ids = filled(model), tokens(2, 12)
    assert cache.is_croppable
    cache.crop(-4)
    assert cache.get_seq_length() == 8
    with torch.no_grad():
        found = model(ids[:, 8:], past_key_values=cache).logits
        torch.testing.assert_close(found, model(ids).logits[:, 8:], rtol=0, atol=1e-5)


def test_a_cache_that_was_begun_without_the_graft_is_refused():
    model = tiny()
    cache = filled(model)
    with pytest.raises(ValueError, match="DynamicLayer of 12 tokens"):
        apply(model, [GRAFTS["linear"]])(tokens(), past_key_values=cache)
