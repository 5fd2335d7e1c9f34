from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from stages.errors import UserError
from stages.evaluate import distance as distances
from stages.evaluate.distance import distance, percentile
from tests.tiny import tiny_model

WINDOWS = torch.randint(384, (5, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[PreTrainedModel]:
    paths = [tiny_model(tmp_path_factory.mktemp("model"), seed=seed) for seed in range(2)]
    return [AutoModelForCausalLM.from_pretrained(path) for path in paths]


def test_a_model_is_at_no_distance_from_itself(models: list[PreTrainedModel]):
    found = distance(models[0], models[0], WINDOWS)
    assert (found.kl, found.kl_p99, found.top1_agreement, found.perplexity_ratio) == (0.0, 0.0, 1.0, 1.0)
    assert found.num_tokens == 5 * 19


def test_every_figure_matches_its_definition(models: list[PreTrainedModel]):
    found = distance(*models, WINDOWS, batch_size=2)
    with torch.no_grad():
        logs = [functional.log_softmax(m(WINDOWS).logits[:, :-1].double(), -1).flatten(0, 1) for m in models]
    kl = functional.kl_div(logs[1], logs[0], log_target=True, reduction="none").sum(-1)
    nll = [functional.nll_loss(log, WINDOWS[:, 1:].flatten()).item() for log in logs]
    assert found.kl == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found.kl_p99 == pytest.approx(kl.sort().values[94].item(), rel=1e-3)
    assert found.top1_agreement == (logs[0].argmax(-1) == logs[1].argmax(-1)).double().mean().item()
    assert found.parent_perplexity == pytest.approx(torch.tensor(nll[0]).exp().item(), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(found.child_perplexity / found.parent_perplexity, rel=1e-6)


def test_batches_and_chunks_do_not_matter(models: list[PreTrainedModel], monkeypatch):
    whole = distance(*models, WINDOWS, batch_size=5)
    monkeypatch.setattr(distances, "CHUNK_POSITIONS", 7)
    parts = distance(*models, WINDOWS, batch_size=1)
    assert parts.metrics() == pytest.approx(whole.metrics(), rel=1e-5)


def test_progress_ends_at_the_total_and_modes_come_back(models: list[PreTrainedModel]):
    told = []
    models[0].train()
    distance(*models, WINDOWS, progress=lambda *args: told.append(args))
    assert told == [(76.0, 95.0, "tokens"), (95.0, 95.0, "tokens")]
    assert models[0].training
    assert not models[1].training
    models[0].eval()


def test_nothing_to_measure_and_other_vocabularies_are_refused(models: list[PreTrainedModel], tmp_path: Path):
    with pytest.raises(UserError, match=r"at least 2 tokens, got \(5, 1\)"):
        distance(*models, WINDOWS[:, :1])
    other = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path, vocab_size=400))
    with pytest.raises(UserError, match="384 tokens in its vocabulary, the child 400"):
        distance(models[0], other, WINDOWS)


def test_percentile_is_a_value_that_occurred():
    values = torch.arange(1, 101).flip(0)
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
