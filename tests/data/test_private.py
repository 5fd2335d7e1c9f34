"""Private synthetic text: gradients of single documents, what one document can change, accounting, and its refusals."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from grafts.loader import load_model
from stages.artifacts import Dataset, DatasetCard, Model, Report
from stages.errors import StageError, UserError
from stages.stage import Context
from tests.machine import one_thread as one_thread
from tests.tiny import text_dataset, tiny_model, tiny_text

pytest.importorskip("opacus")

from stages.data import private_accounting, private_training
from stages.data.private_accounting import account, noise_for, sampling_rate, spent
from stages.data.private_examples import encode, make_prompts
from stages.data.private_training import Plan, adapted, document_losses, sample, train_privately
from stages.data.synthesize_private import SynthesizePrivate, SynthesizePrivateParameters
from stages.training.cross_entropy import IGNORED

QUICK = {"steps": 3, "batch_documents": 8, "documents": 6, "sequence_length": 24, "rank": 2, "micro_batch": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_model(tmp_path_factory.mktemp("private")))


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    return Tokenizer.from_file(str(model.path / "tokenizer.json"))


def examples(tokenizer: Tokenizer, count: int = 12, prompt: str = "", length: int = 16):
    prompts = make_prompts(tokenizer, 0, prompt, ())
    return encode(tokenizer, [(text, "") for text in tiny_text(count)], prompts, length, 0)


def learner(model: Model):
    return adapted(load_model(model.path, dtype=torch.float32), rank=2, seed=0)


def plan(**changes) -> Plan:
    base = {"learning_rate": 1e-2, "clip": 0.5, "noise_multiplier": 1.0, "batch_documents": 5}
    return Plan(**{**base, "steps": 2, "micro_batch": 3, **changes})


def trained(module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def wrapped(model, data, settings):
    _, module, optimiser, _ = private_training._private(model, data, settings)
    return module, optimiser


def gradients_of_documents(module, data) -> list[torch.Tensor]:
    """Naive reference: the gradient of each document, flat, one backward pass at a time."""
    found = []
    for row in range(len(data.ids)):
        module.zero_grad()
        document_losses(module, data.ids[row : row + 1], data.labels[row : row + 1]).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad]))
    return found


def moved_b(module) -> None:
    """Give the adapters' second factors values, so that no gradient is zero for want of them."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.05)


@pytest.fixture
def summed(model, tokenizer):
    """A function: the sum of clipped gradients that Opacus makes of some rows, without noise."""

    def clipped_sum(rows: slice, clip: float) -> torch.Tensor:
        data, module = examples(tokenizer), learner(model)
        moved_b(module)
        private, optimiser = wrapped(module, data, plan(noise_multiplier=0.0, clip=clip))
        document_losses(private, data.ids[rows], data.labels[rows]).sum().backward()
        optimiser.clip_and_accumulate()
        return torch.cat([p.summed_grad.flatten() for p in optimiser.params])

    return clipped_sum


def test_gradients_of_documents_are_clipped_one_by_one(model, tokenizer, summed):
    module = learner(model)
    moved_b(module)
    single = gradients_of_documents(module.train(), examples(tokenizer))
    clip = float(torch.stack([g.norm() for g in single]).median())
    expected = sum(g * min(1.0, clip / float(g.norm())) for g in single)
    assert float(expected.norm()) > 0
    torch.testing.assert_close(summed(slice(None), clip), expected, atol=1e-4, rtol=1e-3)


def test_one_document_changes_the_sum_by_no_more_than_the_clip(summed):
    whole, without = summed(slice(0, 6), 0.1), summed(slice(0, 5), 0.1)
    assert 0 < float((whole - without).norm()) <= 0.1 * (1 + 1e-5)


def test_prompts_and_fillers_are_not_learnt(model, tokenizer):
    (prompt,) = make_prompts(tokenizer, 0, "[review] ", ())
    data = examples(tokenizer, prompt="[review] ")
    assert (data.labels[:, : len(prompt.ids)] == IGNORED).all()
    assert data.ids.shape == (12, 16), "every example has one shape, whatever is in it"
    short = encode(tokenizer, [("a", "")], [prompt], 24, 0)
    learnt = (short.labels[0] != IGNORED).nonzero().flatten().tolist()
    assert learnt == list(range(len(prompt.ids), len(prompt.ids) + 2)), "the letter and the end"
    module = learner(model)
    other = short.ids.clone()
    other[0, learnt[-1] + 1 :] = 7
    assert document_losses(module, short.ids, short.labels) == document_losses(module, other, short.labels)


def test_only_the_adapter_moves_and_every_step_counts(model, tokenizer):
    module, data = learner(model), examples(tokenizer)
    frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    before = trained(module)
    done = []
    history = train_privately(module, data, plan(), lambda *told: done.append(told))
    assert history == [(1.0, sampling_rate(12, 5), 2)]
    assert sampling_rate(12, 5) == 1 / 3
    assert done[-1] == (2, 2, "steps")
    after = dict(module.named_parameters())
    assert all("lora" in name for name in before)
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "lora_B" in name)
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_a_step_that_draws_nobody_has_noise_all_the_same(model, tokenizer):
    module, data = learner(model), examples(tokenizer)
    before = trained(module)
    private, optimiser = wrapped(module, data, plan())
    private_training._step(private, optimiser, (data.ids[:0], data.labels[:0]))
    assert all(not torch.equal(value, before[name]) for name, value in trained(module).items())


def test_the_noise_is_never_the_same_and_ignores_the_seed(model, tokenizer):
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        module = learner(model)
        train_privately(module, examples(tokenizer), plan(steps=1), lambda *_: None)
        weights.append(trained(module))
    assert any(not torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_the_accountants_agree_with_the_exact_gaussian_mechanism():
    """One step on all documents is the Gaussian mechanism, whose delta is known exactly (arXiv 1805.06530)."""

    def delta_of(epsilon: float, sigma: float) -> float:
        phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
        return phi(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma)

    found = spent([(2.0, 1.0, 1)], 1e-5)
    assert delta_of(found.prv, 2.0) == pytest.approx(1e-5, rel=0.1)
    assert found.prv <= found.rdp < found.prv * 1.3


def test_epsilon_rises_with_steps_and_falls_with_noise():
    by_steps = [spent([(1.5, 0.05, steps)], 1e-5).prv for steps in (5, 20, 100)]
    by_noise = [spent([(sigma, 0.05, 50)], 1e-5).prv for sigma in (1.2, 1.6, 2.0)]
    assert by_steps == sorted(by_steps)
    assert by_noise == sorted(by_noise, reverse=True)
    sigma = noise_for(1.0, 1e-5, 0.05, 50)
    assert 0.97 < account([(sigma, 0.05, 50)], 1e-5, target=1.0).prv <= 1.0


@pytest.mark.parametrize(
    ("prv", "rdp", "told"),
    [(float("nan"), 4.0, "give epsilon nan"), (3.0, 2.0, "contradict"), (9.0, 10.0, "budget is 4")],
)
def test_an_account_that_does_not_add_up_is_refused(monkeypatch, prv, rdp, told):
    monkeypatch.setattr(private_accounting, "spent", lambda *_: private_accounting.Spent(prv, rdp))
    with pytest.raises(StageError, match=told) as caught:
        account([(1.0, 0.1, 10)], 1e-5, target=4.0)
    assert "batch_documents" in caught.value.fix


def run(inputs, directory: Path, **params) -> Context:
    stage = SynthesizePrivate(SynthesizePrivateParameters(**{**QUICK, **params}))
    stage.preflight()
    stage.check(inputs)
    context = Context(inputs, out=directory / "out", scratch=directory / "scratch")
    stage.run(context)
    return context


def test_the_stage_writes_text_and_its_bound(model, tmp_path):
    context = run({"model": model, "private": text_dataset(tmp_path / "text", 40)}, tmp_path, epsilon=1.0)
    made, found = Dataset(context.output("dataset")), context.results
    assert made.card.num_rows == len(pq.read_table(made.shards[0])) == found["documents"] == 6
    assert 0.95 < found["epsilon"] <= 1.0
    assert found["epsilon"] <= found["epsilon_rdp"]
    assert found["delta"] == pytest.approx(0.1 / 40)
    details = Report(context.output("report")).content["details"]
    assert "differential privacy for adding or removing one document" in details["privacy"]
    assert any("pretrained on the private" in line for line in details["not_covered"])
    told = {*found, *details}
    assert not {name for name in told if "loss" in name}, "no figure of the private text is told"
    assert not list((tmp_path / "scratch").rglob("*")), "and nothing of it is left behind"


def test_without_noise_nothing_is_claimed(model, tmp_path):
    context = run({"model": model, "private": text_dataset(tmp_path / "text", 40)}, tmp_path, epsilon=None)
    assert context.results["private"] == 0
    assert "epsilon" not in context.results
    details = Report(context.output("report")).content["details"]
    assert details["privacy"] == "none: no noise was added"
    assert details["accountants"] == []


def test_when_the_accountant_cannot_run_nothing_is_published(model, tmp_path, monkeypatch):
    def broken(*_):
        raise ImportError("no accountant here")

    monkeypatch.setattr(private_accounting, "spent", broken)
    inputs = {"model": model, "private": text_dataset(tmp_path / "text", 40)}
    for when in ("before", "after"):
        with pytest.raises(StageError, match=r"accountant could not run.*nothing is published"):
            run(inputs, tmp_path / when, epsilon=1.0)
        monkeypatch.setattr(private_accounting, "noise_for", lambda *_: 1.0)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert not list((tmp_path / "out").rglob("report.json"))


def labelled(directory: Path, labels: list[str]) -> Dataset:
    directory.mkdir(parents=True)
    texts = tiny_text(len(labels))
    pq.write_table(pa.table({"text": texts, "mood": labels}), directory / "shard-00000.parquet")
    DatasetCard("text", num_rows=len(texts), num_bytes=1).write(directory)
    return Dataset(directory)


LABELS = {"label_field": "mood", "labels": ["good", "bad"], "prompt": "[{label}] "}


def test_labels_are_asked_for_in_equal_parts(model, tmp_path):
    inputs = {"model": model, "private": labelled(tmp_path / "text", ["good"] * 18 + ["bad"] * 2)}
    context = run(inputs, tmp_path, **LABELS, documents=5, epsilon=None)
    assert pq.read_table(Dataset(context.output("dataset")).shards[0])["mood"].to_pylist().count("bad") == 2
    with pytest.raises(UserError, match="a label in column 'mood' that is none of good, bad") as caught:
        run({**inputs, "private": labelled(tmp_path / "other", ["ugly"] * 20)}, tmp_path, **LABELS, epsilon=None)
    assert "ugly" not in str(caught.value), "what a private document says is told nowhere"
    with pytest.raises(UserError, match="no column 'mood'"):
        run({**inputs, "private": text_dataset(tmp_path / "none", 20)}, tmp_path, **LABELS, epsilon=None)
    with pytest.raises(ValueError, match="come together"):
        SynthesizePrivateParameters(labels=("good",))


def test_what_would_protect_nothing_is_refused(model, tmp_path):
    inputs = {"model": model, "private": text_dataset(tmp_path / "text", 20)}
    with pytest.raises(UserError, match="no less than one over the 20"):
        run(inputs, tmp_path, delta=0.05)
    with pytest.raises(UserError, match="batch_documents: 30 of 20"):
        run(inputs, tmp_path, batch_documents=30)
    with pytest.raises(UserError, match="a prompt takes"):
        run(inputs, tmp_path, prompt="word " * 40, epsilon=None)
    with pytest.raises(UserError, match="within epsilon 1e-06"):
        run(inputs, tmp_path, epsilon=1e-6)


def test_sampling_is_a_function_of_its_seed(model, tokenizer):
    module = load_model(model.path, dtype=torch.float32)
    prompts = make_prompts(tokenizer, 0, "", ())
    drawn = [[ids for _, batch in sample(module, prompts, 5, 12, 0, 2, seed) for ids in batch] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 5
    assert all(len(ids) <= 11 and 0 not in ids for ids in drawn[0])


def test_sampling_heeds_nothing_that_the_model_recommends(model, tokenizer):
    """Such as generation_config.json does: the text would not come from the model's distribution."""
    prompts, drawn = make_prompts(tokenizer, 0, "", ()), []
    for recommended in ({}, {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "min_p": 0.99}):
        module = load_model(model.path, dtype=torch.float32)
        module.generation_config.update(**recommended)
        drawn.append([ids for _, batch in sample(module, prompts, 5, 24, 0, 5, 0) for ids in batch])
        assert module.generation_config.to_dict().items() >= recommended.items(), "and it has them as before"
    assert drawn[0] == drawn[1]


def test_truncation_left_in_the_tokenizer_cuts_nothing(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model.path, folder)
    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(2)
    cutting.save(str(folder / "tokenizer.json"))
    inputs = {"model": Model(folder), "private": text_dataset(tmp_path / "text", 20)}
    with pytest.raises(UserError, match="a prompt takes"):
        run(inputs, tmp_path, prompt="word " * 40, epsilon=None)
