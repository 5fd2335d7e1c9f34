from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grafts.hybrid import heads
from grafts.hybrid.cache import HybridCacheLayer
from grafts.hybrid.deltanet import _convolve
from grafts.hybrid.graft import HybridHeads
from grafts.hybrid.settings import DeltaNet
from tests.grafts.families import FAMILIES, tokens
from tests.grafts.hybrids import GRAFTS, HEADS, LOOSE, hybrid, logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", GRAFTS)
def test_cached_steps_are_the_whole_sequence(name: str, family: str):
    model, ids = hybrid(GRAFTS[name], family), tokens()
    whole = logits(model, ids, use_cache=False)
    cache, pieces = None, []
    for piece in _pieces(ids):
        with torch.no_grad():
            out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    # Gemma's and Qwen's own norms are float32, whatever the model is
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)
    assert cache.get_seq_length() == ids.shape[1]


def _pieces(ids: Tensor) -> list[Tensor]:
    """A first part beyond the sliding windows, a single token, several, then one by one."""
    return list(ids.split([9, 1, 4, *[1] * (ids.shape[1] - 14)], dim=1))


@pytest.mark.parametrize("name", GRAFTS)
def test_the_eager_attention_computes_the_same(name: str):
    model, ids = hybrid(GRAFTS[name]).float(), tokens()
    expected = logits(model, ids)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model, ids), expected, **LOOSE)
    cache = model(ids[:, :18], use_cache=True).past_key_values
    for part in (ids[:, 18:20], ids[:, 20:]):
        found = logits(model, part, past_key_values=cache)
    torch.testing.assert_close(found, expected[:, 20:], **LOOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [0, 4])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("name", ["windows", "windows and sinks"])
def test_windows_in_blocks_are_windows_at_once(
    name: str, family: str, padded: int, attention: str, monkeypatch: pytest.MonkeyPatch
):
    model, ids = hybrid(GRAFTS[name], family), tokens(2, 23)
    model.set_attn_implementation(attention)
    bound = 1e-5
    if attention == "eager":  # its softmax is float32, where the least float64 of a padded row's mask is no number
        model, bound = model.float(), 1e-3
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0

    def run() -> tuple[Tensor, ...]:
        first = model(ids[:, :16], attention_mask=mask[:, :16], use_cache=True)
        second = model(ids[:, 16:], attention_mask=mask, past_key_values=first.past_key_values).logits
        found = torch.cat([first.logits, second], 1)[mask.bool()]
        return found, *torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)

    monkeypatch.setattr(heads, "BLOCK_QUERIES", 64)
    expected = run()
    for size in (1, 3, 7):
        monkeypatch.setattr(heads, "BLOCK_QUERIES", size)
        for one, other in zip(run(), expected, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("block", [64, 3, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_windows_keep_the_first_tokens_of_each_packed_document(
    attention: str, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heads, "BLOCK_QUERIES", block)
    model, lengths = hybrid(GRAFTS["windows and sinks"]).float(), (9, 2, 12)
    model.set_attn_implementation(attention)
    documents = tokens(1, sum(lengths)).split(lengths, dim=1)
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = logits(model, torch.cat(documents, 1), position_ids=places, use_cache=False)
    alone = torch.cat([logits(model, document, use_cache=False) for document in documents], 1)
    torch.testing.assert_close(packed, alone, **LOOSE)


@pytest.mark.parametrize("block", [64, 4])
@pytest.mark.parametrize("lengths", [(23,), (3, 9, 11)])
def test_windows_with_first_tokens_are_their_definition(
    lengths: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heads, "BLOCK_QUERIES", block)
    number, total, window, sinks = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]), sum(lengths), 4, 2
    place = torch.cat([torch.arange(n) for n in lengths])
    mask = (number[:, None] == number) & torch.ones(total, total, dtype=torch.bool).tril()
    near = (torch.arange(total)[:, None] - torch.arange(total) < window) | (place < sinks)
    starts, found = heads.first_tokens(mask[None, None]), torch.zeros(total, total, dtype=torch.bool)
    for piece in heads.blocks(total, torch.arange(total), starts, window, sinks):
        columns, own = torch.arange(total)[piece.keys], starts[:, piece.queries]
        seen = heads.window_mask(piece.of(mask[None, None]), piece.num_queries, columns, window, sinks, own)
        found[piece.queries.start : piece.queries.stop, columns] = seen[0, 0]
        assert len(columns) <= piece.num_queries + window - 1 + sinks * (1 + len(own.unique())) or block == 64
    assert torch.equal(found, mask & near)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("name", GRAFTS)
def test_no_token_sees_the_future(name: str, family: str):
    model, ids = hybrid(GRAFTS[name], family), tokens()
    changed = ids.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 96
    before, after = logits(model, ids), logits(model, changed)
    assert torch.equal(before[:, :11], after[:, :11]) or (before - after)[:, :11].abs().max() < 1e-12
    assert (before - after)[:, 11:].abs().amin((0, 2)).min() > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", GRAFTS)
def test_left_padding_changes_nothing(name: str, attention: str):
    model, ids = hybrid(GRAFTS[name], "qwen2").float(), tokens(1)
    model.set_attn_implementation(attention)
    batch = torch.cat([torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], 1), tokens(1, 27, seed=5)])
    mask = (batch != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = logits(model, batch, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(padded[:1, 6:], logits(model, ids), **LOOSE)
    alone = model.generate(ids, max_new_tokens=6, do_sample=False)
    together = model.generate(batch, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(together[0, -6:], alone[0, -6:])


@pytest.mark.parametrize("kept", [0, 3])
def test_the_short_convolution_is_that_of_torch(kept: int):
    conv = torch.nn.Conv1d(6, 6, 4, groups=6, bias=False).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    held = HybridCacheLayer(None, {}) if kept else None
    parts = [_convolve(conv, part, held) for part in (x[:, :kept], x[:, kept:]) if part.shape[1]]
    expected = conv(torch.nn.functional.pad(x.mT, (3, 0))).mT
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_padding_after_the_text_leaves_the_state_as_it_was():
    model, ids = hybrid(HybridHeads(full_heads=HEADS, deltanet=DeltaNet(conv=None))), tokens(2, 9)
    padded = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], 1)
    before = model(ids, use_cache=True).past_key_values
    after = model(padded, attention_mask=(padded != 0).long(), use_cache=True).past_key_values
    for one, other in zip(before.layers, after.layers, strict=True):
        torch.testing.assert_close(one.recurrent_state, other.recurrent_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_generating_is_the_argmax_without_a_cache(family: str):
    model, ids = hybrid(GRAFTS["paper"], family), tokens()
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, logits(model, expected, use_cache=False)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)


@pytest.mark.parametrize("name", GRAFTS)
def test_beams_take_their_states_with_them(name: str):
    model, ids = hybrid(GRAFTS[name]), tokens()
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))


def test_what_a_hybrid_cannot_do_is_said():
    model, ids = hybrid(GRAFTS["paper"]), tokens(1)
    with pytest.raises(ValueError, match="stateful models"):
        model.generate(ids, max_new_tokens=3, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match="leave out `cache_implementation`"):
        model.generate(ids, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids, position_ids=torch.arange(7).repeat(3)[None], use_cache=False)
