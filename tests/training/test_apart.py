"""Documents of a window that do not see each other: the loss of each alone, or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from stages.artifacts import Dataset, Model
from stages.distill.recipe import Distillation
from stages.distill.settings import DistillParameters
from stages.errors import UserError
from stages.training.apart import require_apart
from stages.training.cross_entropy import naive
from stages.training.language_model import LanguageModelling
from stages.training.recipe import Worker
from stages.transfer.alignment import Alignment
from stages.upcycle.blend import Blended
from stages.upcycle.mixture import MixtureTraining
from tests.data.test_prepare import prepare
from tests.tiny import text_dataset, tiny_model, tokens_dataset

HERE = Worker(0, 1, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_model(tmp_path_factory.mktemp("seed")))


@pytest.fixture(scope="module")
def apart(seed: Model, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Windows of 96 tokens of short documents."""
    root = tmp_path_factory.mktemp("apart")
    context = prepare(text_dataset(root / "text"), seed, root, attention="document", sequence_length=96)
    return Dataset(context.output("train"))


def recipe(
    kind: type[LanguageModelling], seed: Model, data: Dataset, root: Path, **options: object
) -> LanguageModelling:
    made = kind(seed, data, None, 1, 1, seed, root / "cache", root / "out", **options)
    made.prepare(HERE)
    return made


def alone(model: PreTrainedModel, ids_T: torch.Tensor, starts: list[int]) -> tuple[float, int]:
    """The summed loss of each document by itself, and its targets."""
    total, targets = 0.0, 0
    for start, end in zip(starts, [*starts[1:], len(ids_T)], strict=True):
        if end - start > 1:
            logits_PV = model(input_ids=ids_T[None, start : end - 1]).logits[0]
            total += float(naive(logits_PV, ids_T[start + 1 : end]))
            targets += end - start - 1
    return total, targets


@torch.no_grad()
def test_the_loss_is_that_of_every_document_alone(seed: Model, apart: Dataset, tmp_path: Path):
    made = recipe(Blended, seed, apart, tmp_path)
    model, batch = made.build(), made.batch([0, 1, 2])
    ids_BT, positions_BT = batch.tensors["ids_BT"], batch.tensors["positions_BT"]
    starts = [torch.nonzero(row == 0).flatten().tolist() for row in positions_BT]
    assert max(map(len, starts)) > 1
    found = [alone(model, row, begins) for row, begins in zip(ids_BT, starts, strict=True)]
    assert float(made.loss(model, batch).total) == pytest.approx(sum(loss for loss, _ in found), rel=1e-5)
    assert batch.num_targets == sum(targets for _, targets in found)


def test_plain_windows_among_them_count_through(seed: Model, apart: Dataset, tmp_path: Path):
    plain = tokens_dataset(tmp_path / "plain", seed.path, num_windows=20, sequence_length=96)
    made = recipe(Blended, seed, apart, tmp_path, more=[plain], shares=(0.5, 0.5))
    last = made.batch([made.num_samples - 1])
    assert last.tensors["positions_BT"][0].tolist() == list(range(96))
    assert last.num_targets == 95
    assert "positions_BT" not in recipe(Blended, seed, plain, tmp_path).batch([0]).tensors


def test_a_recipe_that_cannot_keep_them_apart_refuses(seed: Model, apart: Dataset, tmp_path: Path):
    with pytest.raises(UserError, match="attention: document"):
        recipe(LanguageModelling, seed, apart, tmp_path)


@pytest.mark.parametrize("role", ["heldout", "domains[1]"])
def test_held_out_text_is_opened_before_training(seed: Model, apart: Dataset, tmp_path: Path, role: str):
    plain = tokens_dataset(tmp_path / "plain", seed.path, sequence_length=96)
    heldout, domains = (apart, ()) if role == "heldout" else (plain, (plain, apart))
    made = MixtureTraining(
        model=seed,
        data=plain,
        heldout=heldout,
        heldout_windows=1,
        measure_batch=1,
        parent=seed,
        cache=tmp_path / "cache",
        out=tmp_path / "out",
        top_k=1,
        balance_weight=0,
        z_weight=0,
        domains=domains,
        loads_file=tmp_path / "loads.json",
    )
    with pytest.raises(UserError, match="models are measured on whole windows") as caught:
        made.prepare(HERE)
    assert (caught.value.where, caught.value.fix) == (role, f"prepare {role} with `attention: window`")


def test_alignment_and_distillation_open_it_before_training_too(seed: Model, apart: Dataset, tmp_path: Path):
    plain = tokens_dataset(tmp_path / "plain", seed.path, sequence_length=96)
    alignment = Alignment(seed, seed, plain, apart, 1, 1, tmp_path / "cache", tmp_path / "out", tmp_path / "errors")
    distillation = Distillation(seed, seed, plain, apart, DistillParameters(), tmp_path / "cache", tmp_path / "out")
    for made in (alignment, distillation):
        with pytest.raises(UserError, match="fix: prepare heldout with `attention: window`"):
            made.prepare(HERE)


def test_a_model_that_carries_one_document_into_the_next_is_found_out(seed: Model):
    model = AutoModelForCausalLM.from_pretrained(seed.path)
    for dtype in (torch.float32, torch.bfloat16):
        require_apart(model.to(dtype))
    model.train()
    forward = model.forward
    model.forward = lambda input_ids, position_ids=None, **rest: forward(input_ids, **rest)
    with pytest.raises(UserError, match="LlamaForCausalLM lets the documents of a window see each other"):
        require_apart(model)
    assert model.training
