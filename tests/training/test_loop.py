"""One worker: what a step computes, what stops it, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from grafts import arithmetic
from stages.errors import UserError
from stages.training import engine as engines
from tests.training.language_model import LanguageModel, parameters, run


def test_the_engine_is_deepspeeds_and_trains(recipe: LanguageModel, tmp_path: Path, monkeypatch):
    built = []
    original = engines.build_engine
    monkeypatch.setattr("stages.training.loop.build_engine", lambda *args: built.append(original(*args)) or built[-1])
    before = dict(os.environ)
    finished = run(recipe, tmp_path / "scratch")
    import deepspeed

    assert [type(engine) for engine in built] == [deepspeed.DeepSpeedEngine]
    assert built[0].world_size == 1
    assert finished.curve("loss")[-1] < finished.curve("loss")[0] - 0.1
    assert os.environ.keys() - before.keys() <= {"CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"}
    assert {name: os.environ.get(name) for name in before} == before
    assert not torch.distributed.is_initialized()


def test_first_loss_and_update_match_plain_torch(recipe: LanguageModel, tmp_path: Path):
    from stages.training.order import global_batch
    from stages.training.recipe import Worker

    finished = run(recipe, tmp_path / "scratch", tokens=1, schedule="constant", warmup_fraction=0, weight_decay=0.1)
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.float32))
    model = recipe.build()
    optimiser = torch.optim.AdamW(engines.parameter_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.95))
    batch = recipe.batch(global_batch(0, 8, recipe.num_samples, seed=3))
    loss = recipe.loss(model, batch).total / batch.num_targets
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    assert finished.curve("loss") == pytest.approx([loss.item()], rel=1e-6)
    assert finished.curve("grad_norm") == pytest.approx([norm.item()], rel=1e-5)
    _assert_close(load_file(finished.out / "model.safetensors"), dict(model.named_parameters()), 1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accumulating_equals_batching_even_with_uneven_masks(recipe: LanguageModel, tmp_path: Path, precision):
    recipe.masked = True
    whole = run(recipe, tmp_path / "whole", precision=precision)
    parts = run(recipe, tmp_path / "parts", micro_batch=3, precision=precision)
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    assert parts.curve("loss") == pytest.approx(whole.curve("loss"), rel=tolerance)
    assert parts.curve("grad_norm") == pytest.approx(whole.curve("grad_norm"), rel=10 * tolerance)


def test_zero_stages_give_the_same_losses(recipe: LanguageModel, tmp_path: Path):
    runs = [run(recipe, tmp_path / f"z{z}", zero_stage=z, micro_batch=4) for z in range(4)]
    for other in runs[1:]:
        assert other.curve("loss") == pytest.approx(runs[0].curve("loss"), rel=1e-5)
        assert other.curve("grad_norm") == pytest.approx(runs[0].curve("grad_norm"), rel=1e-3)


def test_same_seed_same_bytes_and_another_seed_others(recipe: LanguageModel, tmp_path: Path):
    def files(finished) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted(finished.out.iterdir())}

    first = files(run(recipe, tmp_path / "a"))
    second = files(run(dataclasses.replace(recipe, out=tmp_path / "other"), tmp_path / "b"))
    assert first == second
    assert files(run(recipe, tmp_path / "c", seed=4)) != first


def test_recomputed_activations_change_nothing(recipe: LanguageModel, tmp_path: Path):
    plain = run(recipe, tmp_path / "a")
    recomputed = run(recipe, tmp_path / "b", activation_checkpointing=True)
    assert recomputed.curve("loss") == plain.curve("loss")
    assert recomputed.weights == plain.weights


def test_bf16_keeps_float32_master_weights(recipe: LanguageModel, tmp_path: Path):
    """Updates far below bf16's resolution still add up: they would all be lost without float32 weights behind."""
    settings = {"precision": "bf16", "schedule": "constant", "warmup_fraction": 0, "learning_rate": 4e-5}
    finished = run(recipe, tmp_path / "scratch", tokens=20 * 8 * 24, **settings)
    start = load_file(recipe.model / "model.safetensors")["model.embed_tokens.weight"]
    end = load_file(finished.out / "model.safetensors")["model.embed_tokens.weight"]
    assert end.dtype == torch.bfloat16
    large = start.abs() > 0.03  # bf16 steps there are at least 1.2e-4, three updates wide
    assert (start.bfloat16() != end)[large].float().mean() > 0.5


def test_nothing_of_zero_3_stays_in_this_process(recipe: LanguageModel, tmp_path: Path):
    linear = functional.linear
    run(recipe, tmp_path, zero_stage=3, micro_batch=4)
    assert functional.linear is linear


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_bf16_is_the_textbooks(recipe: LanguageModel, tmp_path: Path, zero_stage):
    """Forward and backward in bf16, the sums and AdamW in float32 on weights that start as the bf16 ones."""
    from stages.training.order import global_batch
    from stages.training.recipe import Worker

    settings = {"precision": "bf16", "schedule": "constant", "warmup_fraction": 0, "gradient_clip": 0.5}
    finished = run(recipe, tmp_path / "scratch", zero_stage=zero_stage, **settings)
    recipe.prepare(Worker(0, 1, torch.device("cpu"), torch.bfloat16))
    low, master = recipe.build(), recipe.build()
    for narrow, wide in zip(low.parameters(), master.parameters(), strict=True):
        narrow.data = narrow.data.bfloat16()
        wide.data = narrow.data.float()
    optimiser, losses = torch.optim.AdamW(master.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0), []
    for step in range(5):
        batch = recipe.batch(global_batch(step, 8, recipe.num_samples, seed=3))
        loss = recipe.loss(low, batch).total / batch.num_targets
        loss.backward()
        for narrow, wide in zip(low.parameters(), master.parameters(), strict=True):
            wide.grad, narrow.grad = narrow.grad.float(), None
        torch.nn.utils.clip_grad_norm_(master.parameters(), 0.5)
        optimiser.step()
        for narrow, wide in zip(low.parameters(), master.parameters(), strict=True):
            narrow.data.copy_(wide.data)
        losses.append(loss.item())
    assert finished.curve("loss") == pytest.approx(losses, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_good_one(recipe: LanguageModel, tmp_path: Path):
    recipe.fault = "nan"
    with pytest.raises(
        UserError, match=r"loss became nan at step 2 of 5; the last loss was 5\.\d+[\s\S]*learning_rate"
    ):
        run(recipe, tmp_path / "scratch", checkpoint_minutes=0)
    assert [step.name for step in (tmp_path / "scratch/checkpoints").glob("step-*")] == ["step-000000001"]


def test_what_auto_was_is_told(recipe: LanguageModel, tmp_path: Path, monkeypatch):
    for computes, dtype in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(arithmetic, "computes_in", lambda _dtype, _device="cpu", computes=computes: computes)
        finished = run(recipe, tmp_path / dtype, precision="auto", tokens=1)
        assert f"on 1 worker(s) in {dtype}, " in finished.events[0]["text"]
        details = finished.result.details(parameters(recipe), seed=3)
        assert (details["computed_in"], details["seed"]) == (dtype, 3)


def test_nothing_is_compiled(recipe: LanguageModel, tmp_path: Path):
    """Training compiles no C++: it works in a process that finds neither a compiler nor ninja."""
    code = (
        "from pathlib import Path; from stages.artifacts import Dataset;"
        "from tests.training.language_model import LanguageModel, run;"
        f"recipe = LanguageModel(Path({str(recipe.model)!r}), Dataset(Path({str(recipe.data.path)!r})),"
        f" Path({str(recipe.out)!r}));"
        f"run(recipe, Path({str(tmp_path / 'scratch')!r}), tokens=1)"
    )
    root = str(Path(__file__).parents[2])
    bare = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": root, "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    subprocess.run([sys.executable, "-c", code], check=True, env=bare, cwd=root)
    assert not list(tmp_path.glob("built/**/*.so"))
    assert (recipe.out / "model.safetensors").exists()


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].detach(), atol=tolerance, rtol=0)
