from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from stages.evaluate.prediction import Predictor
from tests.evaluate.families import FAMILIES, tiny

IDS = torch.randint(96, (3, 21), generator=torch.Generator().manual_seed(0))


def whole(model: nn.Module, **options: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS[:, :-1], use_cache=False, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_streams_the_logits_of_its_own_forward(family: str):
    model = tiny(family)
    predictor = Predictor(model)
    found = predictor.predict(IDS)
    expected_PV = whole(model).logits.flatten(0, 1)
    assert predictor.streams
    assert (found.num_positions, found.vocab_size) == (60, 96)
    parts = torch.cat([found.read(start, start + 7) for start in range(0, 60, 7)])
    torch.testing.assert_close(parts, expected_PV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_the_bare_head_would_be_wrong_for_these(family: str):
    """Guards the test above: their tails do change the logits."""
    model = tiny(family)
    with torch.no_grad():
        bare = model.get_output_embeddings()(model.base_model(input_ids=IDS[:, :-1]).last_hidden_state)
    assert not torch.allclose(bare, whole(model).logits, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_hidden_states_come_with_it(family: str):
    model = tiny(family)
    expected = whole(model, output_hidden_states=True).hidden_states
    found = Predictor(model).predict(IDS, layers=True).layers
    assert len(found) == len(expected) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert Predictor(model).predict(IDS).layers == ()


def test_the_model_is_left_as_it_was():
    model = tiny("llama")
    before = whole(model).logits
    Predictor(model).predict(IDS).read(0, 5)
    assert "forward" not in vars(model.base_model)
    assert not model.base_model._forward_hooks
    assert torch.equal(whole(model).logits, before)


class Bigram(nn.Module):
    """No body, no head, nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, 96)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table(input_ids))


def test_a_model_without_a_body_gives_whole_logits():
    model = Bigram()
    predictor = Predictor(model)
    found = predictor.predict(IDS)
    assert not predictor.streams
    assert torch.equal(found.read(10, 20), whole(model).logits.flatten(0, 1)[10:20])


def test_a_tail_that_looks_across_positions_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Logits that depend on more than their own hidden state cannot be cut: whole logits are used, and are right."""
    model = tiny("llama")
    plain = type(model).forward

    def forward(self: PreTrainedModel, input_ids: Any = None, logits_to_keep: Any = 0, **options: Any) -> Any:
        output = plain(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **options)
        output.logits = output.logits - output.logits.mean(1, keepdim=True)
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    predictor = Predictor(model)
    found = predictor.predict(IDS)
    assert not predictor.streams
    assert torch.equal(found.read(0, 60), whole(model).logits.flatten(0, 1))
