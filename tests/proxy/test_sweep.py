"""Step Law and its fit, convex fits of sweeps, the window of learning rates: exact values and planted optima."""

from __future__ import annotations

import numpy as np
import pytest

from stages.artifacts import Model, Report, write_report
from stages.errors import UserError
from stages.proxy.fit_law import ProxyFitLaw
from stages.proxy.law import STEP_LAW, Cell, fit_law, whole_sequences
from stages.proxy.step_law import ProxyStepLaw, count_parameters
from stages.proxy.surface import Surface, best_points, fit_surface, num_coefficients
from stages.proxy.sweep import ProxySweep
from stages.proxy.window import Probes, find_window
from tests.proxy.runs import details, reports, run, said, trained
from tests.tiny import tiny_model


def test_the_law_at_points_worked_out_by_hand():
    assert STEP_LAW.learning_rate(1e9, 1e11) == pytest.approx(1.79 * 10 ** (-0.713 * 9 + 0.307 * 11), rel=1e-12)
    assert STEP_LAW.learning_rate(1e9, 1e11) == pytest.approx(1.63e-3, rel=0.01)
    assert STEP_LAW.batch(1e11) == pytest.approx(1.11e6, rel=0.01)
    assert STEP_LAW.learning_rate(2e8, 2e10) / STEP_LAW.learning_rate(2e8, 1e10) == pytest.approx(1.237, rel=1e-3)
    assert STEP_LAW.batch(2e10) / STEP_LAW.batch(1e10) == pytest.approx(1.486, rel=1e-3)
    assert STEP_LAW.learning_rate(4e8, 1e10) < STEP_LAW.learning_rate(2e8, 1e10)
    assert [whole_sequences(tokens, 2048) for tokens in (10, 2048, 3071, 3073)] == [1, 1, 1, 2]


def test_inside_its_range_the_stage_tells_the_formula(tmp_path):
    found = run(ProxyStepLaw, {}, tmp_path, tokens=10**10, parameters=2 * 10**8)
    assert found.results["learning_rate"] == pytest.approx(STEP_LAW.learning_rate(2e8, 1e10))
    assert found.results["batch_sequences"] == round(STEP_LAW.batch(1e10) / 2048)
    assert found.results["clamped"] == 0
    assert said(found) == ""


def test_outside_its_range_the_law_is_clamped_and_says_so(tmp_path):
    found = run(ProxyStepLaw, {}, tmp_path / "a", tokens=10**8, parameters=10**6)
    assert found.results["learning_rate"] == pytest.approx(STEP_LAW.learning_rate(6e7, 2e9))
    assert found.results["clamped"] == 1
    assert "parameters 1e+06 is outside the fitted range 6e+07 to 1e+09" in said(found)
    assert "tokens 1e+08" in said(found)
    follow = run(ProxyStepLaw, {}, tmp_path / "b", tokens=10**8, parameters=10**6, extrapolate=True)
    assert follow.results["learning_rate"] == pytest.approx(0.027, rel=0.02)
    assert "followed outside" in said(follow)


def test_the_size_comes_from_a_model_without_its_embeddings(tmp_path):
    model = tiny_model(tmp_path / "model", tie_embeddings=False)
    import torch

    from grafts.loader import load_model
    from stages.proxy.training import non_embedding_parameters

    assert count_parameters(model) == non_embedding_parameters(load_model(model, dtype=torch.float32))
    found = run(ProxyStepLaw, {"model": Model(model)}, tmp_path, tokens=10**10)
    assert found.results["parameters"] == count_parameters(model)
    with pytest.raises(UserError, match="neither"):
        run(ProxyStepLaw, {}, tmp_path, tokens=1)
    with pytest.raises(UserError, match="both"):
        run(ProxyStepLaw, {"model": Model(model)}, tmp_path, tokens=1, parameters=5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_the_size_leaves_out_the_embeddings_and_masks_of_other_families(tmp_path, family):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

    from stages.proxy.training import non_embedding_parameters

    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32),
        "gpt_neox": GPTNeoXConfig(**shape, intermediate_size=32, max_position_embeddings=32),
    }[family]
    model = AutoModelForCausalLM.from_config(config)
    embeddings = {id(part.weight): part.weight for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    head = model.get_output_embeddings().weight
    wanted = model.num_parameters() - sum(each.numel() for each in {**embeddings, id(head): head}.values())
    model.save_pretrained(tmp_path)
    assert count_parameters(tmp_path) == non_embedding_parameters(model) == wanted
    tensors, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    start = {"gpt2": "transformer.h.0.attn", "gpt_neox": "gpt_neox.layers.0.attention"}[family]
    masks = {f"{start}.bias": torch.ones(1, 1, 32, 32), f"{start}.masked_bias": torch.tensor(-1e4)}
    save_file({**tensors, **masks, f"{start}.rotary_emb.inv_freq": torch.ones(4)}, file)
    assert count_parameters(tmp_path) == wanted


def planted_cells(noise: float, seed: int = 0) -> list[Cell]:
    rng = np.random.default_rng(seed)
    return [
        Cell(n, d, STEP_LAW.learning_rate(n, d) * np.exp(noise * rng.standard_normal()), STEP_LAW.batch(d))
        for n in (6e7, 1.2e8, 4e8, 1e9)
        for d in (2e9, 8e9, 3e10, 1e11)
    ]


def test_the_fit_finds_a_planted_law_and_its_intervals_cover_it():
    exact = fit_law(planted_cells(0.0), 0.95, 50, 0).law
    assert (exact.rate_factor, exact.rate_parameters, exact.rate_tokens) == pytest.approx((1.79, -0.713, 0.307))
    assert (exact.batch_factor, exact.batch_tokens) == pytest.approx((0.58, 0.571))
    assert exact.parameters_range == (6e7, 1e9)
    fits = [fit_law(planted_cells(0.1, seed), 0.95, 100, seed) for seed in range(30)]
    for name, truth in (("rate_parameters", -0.713), ("rate_tokens", 0.307)):
        covered = sum(fit.intervals[name][0] <= truth <= fit.intervals[name][1] for fit in fits)
        assert covered >= 21, "of 30 at 95 %; a bootstrap over 16 cells is a little short"
        assert all(fit.intervals[name][0] < getattr(fit.law, name) < fit.intervals[name][1] for fit in fits)


def sweep_report(directory, cell: Cell, name: str) -> Report:
    sweep = {**cell.__dict__, "inside": True}
    write_report(directory / name, "Sweep of learning rate and batch", {}, {"sweep": sweep})
    return Report(directory / name)


def test_sweeps_become_a_law_that_step_law_follows(tmp_path):
    cells = [Cell(n, d, 2 * n**-0.5 * d**0.2, 0.1 * d**0.6) for n in (1e4, 1e5) for d in (1e6, 1e7)]
    sweeps = [sweep_report(tmp_path, cell, f"sweep-{number}") for number, cell in enumerate(cells)]
    fitted = run(ProxyFitLaw, {"sweeps": sweeps}, tmp_path / "fit", bootstrap=20)
    assert fitted.results["rate_parameters"] == pytest.approx(-0.5)
    law = Report(fitted.output("report"))
    own = run(ProxyStepLaw, {"law": law}, tmp_path / "law", tokens=5 * 10**6, parameters=50_000)
    assert own.results["learning_rate"] == pytest.approx(2 * 5e4**-0.5 * 5e6**0.2)
    assert own.results["clamped"] == 0
    assert details(own)["optimum"] == {name: own.results[name] for name in ("learning_rate", "batch_tokens")}
    with pytest.raises(UserError, match="3 sweeps"):
        run(ProxyFitLaw, {"sweeps": sweeps[:3]}, tmp_path / "few")
    together = [sweep_report(tmp_path, Cell(10**k, 20 * 10**k, 1e-3, 100), f"line-{k}") for k in (4, 5, 6, 7)]
    with pytest.raises(UserError, match="not only together"):
        run(ProxyFitLaw, {"sweeps": together}, tmp_path / "line")


def test_sweeps_that_did_not_vary_the_batch_give_a_law_without_one(tmp_path):
    varied = [Cell(n, d, 2 * n**-0.5 * d**0.2, 0.1 * d**0.6) for n in (1e4, 1e5) for d in (1e6, 1e7)]
    fixed = Cell(3e5, 3e7, 2 * 3e5**-0.5 * 3e7**0.2, None)
    sweeps = [sweep_report(tmp_path, cell, f"sweep-{number}") for number, cell in enumerate([*varied, fixed])]
    fitted = run(ProxyFitLaw, {"sweeps": sweeps}, tmp_path / "fit", bootstrap=20)
    assert "1 of 5 sweeps did not vary the batch: the law tells none" in said(fitted)
    assert fitted.results["rate_parameters"] == pytest.approx(-0.5)
    assert not [name for name in fitted.results if name.startswith("batch")]
    law = Report(fitted.output("report"))
    own = run(ProxyStepLaw, {"law": law}, tmp_path / "law", tokens=5 * 10**6, parameters=50_000)
    assert "the law tells no batch" in said(own)
    assert not [name for name in own.results if name.startswith("batch")]
    assert details(own)["optimum"] == {"learning_rate": own.results["learning_rate"]}


def test_a_convex_fit_finds_a_planted_optimum_and_is_least_squares():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (30, 2))
    curvature = np.array([[2.0, 0.6], [0.6, 1.0]])
    losses = 3 + np.einsum("pi,ij,pj->p", x - [0.2, -0.3], curvature, x - [0.2, -0.3]) / 2
    surface = fit_surface(x, losses)
    assert surface(x) == pytest.approx(losses)
    assert surface.curvature == pytest.approx(curvature)
    assert surface.optimum(np.array([-1.0, -1.0]), np.array([1.0, 1.0])) == pytest.approx([0.2, -0.3], abs=0.01)


def test_a_surface_that_bends_downwards_is_made_convex_at_the_least_cost():
    x = np.linspace(-1, 1, 21)[:, None]
    surface = fit_surface(x, 2 - x[:, 0] ** 2 + 0.5 * x[:, 0])
    assert surface.curvature[0, 0] == pytest.approx(0, abs=1e-6)
    assert surface.slope[0] == pytest.approx(0.5, abs=1e-6), "the best straight line"
    saddle = np.array([[i, j] for i in np.linspace(-1, 1, 7) for j in np.linspace(-1, 1, 7)])
    losses = saddle[:, 0] ** 2 - 0.5 * saddle[:, 1] ** 2 + 0.2 * saddle[:, 1]
    found = fit_surface(saddle, losses)
    assert np.linalg.eigvalsh(found.curvature).min() > -1e-9
    error = ((found(saddle) - losses) ** 2).sum()
    for bump in (1e-3, -1e-3):
        for axis in range(2):
            slope = found.slope + bump * np.eye(2)[axis]
            other = Surface(found.centre, found.offset, slope, found.curvature)
            assert ((other(saddle) - losses) ** 2).sum() > error


@pytest.mark.parametrize("seed", range(4))
def test_the_convex_fit_is_the_least_squares_one(seed):
    """Against any other convex surface near it, and against an optimiser over curvatures L L^T."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    x = np.array([[i, j] for i in np.linspace(-1, 1, 5) for j in np.linspace(-1, 1, 4)]) * [1.0, 1.5]
    bent = np.array([[1.0, 1.4], [1.4, 0.3]]) * rng.uniform(0.5, 1.5)
    losses = np.einsum("pi,ij,pj->p", x, bent, x) / 2 + x @ rng.normal(size=2) + 0.05 * rng.normal(size=len(x))
    found = fit_surface(x, losses)

    def error(offset, slope, curvature):
        return float(((Surface(found.centre, offset, slope, curvature)(x) - losses) ** 2).sum())

    best = error(found.offset, found.slope, found.curvature)
    assert np.linalg.eigvalsh(found.curvature)[0] == pytest.approx(0, abs=1e-6), "on the edge of what is convex"
    for _ in range(50):
        factor = np.linalg.cholesky(found.curvature + 1e-9 * np.eye(2)) + 0.03 * rng.normal(size=(2, 2))
        assert error(found.offset, found.slope, factor @ factor.T) > best - 1e-6

    def of(values):
        factor = np.array([[values[3], 0], [values[4], values[5]]])
        return error(values[0], values[1:3], factor @ factor.T)

    starts = [np.array([0, 0, 0, 1, side, 0.5]) for side in (1.0, -1.0)]
    assert best <= min(minimize(of, start, options={"gtol": 1e-9}).fun for start in starts) * (1 + 1e-6)


def test_too_few_points_decide_nothing():
    with pytest.raises(ValueError, match="2 points do not decide a quadratic of 1 axes, 3"):
        fit_surface(np.array([[0.0], [1.0]]), np.array([1.0, 2.0]))
    assert best_points(np.array([3.0, 1.0, 2.0, 9.0]), 0.5, 3).tolist() == [0, 1, 2]
    assert (num_coefficients(1), num_coefficients(2)) == (3, 6)


def planted_sweep(rates, batches, best=(1e-3, 16)):
    points = [(rate, batch) for rate in rates for batch in batches]
    losses = [2 + 0.1 * np.log(rate / best[0]) ** 2 + 0.05 * np.log(batch / best[1]) ** 2 for rate, batch in points]
    return [
        trained("web", float(loss), learning_rate=rate, batch_sequences=batch)
        for (rate, batch), loss in zip(points, losses, strict=True)
    ]


def test_a_sweep_finds_the_planted_rate_and_batch(tmp_path):
    runs = planted_sweep((1e-4, 4e-4, 1.6e-3, 6.4e-3), (4, 16, 64))
    found = run(ProxySweep, {"proxies": reports(tmp_path / "runs", runs)}, tmp_path)
    assert found.results["learning_rate"] == pytest.approx(1e-3, rel=0.05)
    assert found.results["batch_sequences"] == pytest.approx(16, rel=0.05)
    assert found.results["batch_tokens"] == found.results["batch_sequences"] * 32
    assert found.results["inside"] == 1
    assert found.results["learning_rate_low"] <= 1e-3 * 1.05
    assert (found.output("report") / "sweep.svg").exists()
    assert details(found)["sweep"]["parameters"] == 1000
    assert sorted(details(found)["points"]) == ["batch 16", "batch 4", "batch 64"]
    optimum = {name: found.results[name] for name in ("learning_rate", "batch_tokens")}
    assert details(found)["optimum"] == optimum
    assert details(found)["sweep"]["batch_tokens"] == optimum["batch_tokens"]


def test_an_optimum_on_the_edge_is_told(tmp_path):
    runs = planted_sweep((1e-5, 3e-5, 1e-4, 3e-4), (16,))
    found = run(ProxySweep, {"proxies": reports(tmp_path / "runs", runs)}, tmp_path)
    assert found.results["inside"] == 0
    assert found.results["learning_rate"] == pytest.approx(3e-4)
    assert "on the edge" in said(found)
    assert details(found)["sweep"]["batch_tokens"] is None, "no batch was found: none was tried beside it"
    assert details(found)["optimum"]["batch_tokens"] == pytest.approx(16 * 32), "what the rate was found at"


def test_what_is_no_sweep_is_refused(tmp_path):
    mixed = [*planted_sweep((1e-4, 4e-4, 1e-3, 4e-3), (16,)), trained("other", 2.0)]
    with pytest.raises(UserError, match="differ in recipe"):
        run(ProxySweep, {"proxies": reports(tmp_path / "a", mixed)}, tmp_path)
    with pytest.raises(UserError, match="3 learning rates and 1 batches in 3 points"):
        run(ProxySweep, {"proxies": reports(tmp_path / "b", planted_sweep((1e-4, 4e-4, 1e-3), (16,)))}, tmp_path)
    cross = [*planted_sweep((1e-4, 4e-4, 1e-3, 4e-3, 1e-2), (16,)), *planted_sweep((1e-3,), (4, 64))]
    with pytest.raises(UserError, match="7 points do not decide a quadratic of 2 axes") as raised:
        run(ProxySweep, {"proxies": reports(tmp_path / "c", cross)}, tmp_path)
    assert "sweep a grid" in raised.value.fix


def flow(rates, ratio, noise_from):
    """Losses that fall by rate times steps alone, plus a floor of noise that grows with the rate."""

    def loss(rate, steps):
        return (
            2 + 4 * np.exp(-rate * steps / 0.05) + (rate / noise_from) ** 2 * 0.2 * (1 - np.exp(-rate * steps / 0.05))
        )

    early, late = (np.array([loss(rate, steps) for rate in rates]) for steps in (100 / ratio, 100))
    return Probes(np.array(rates), early, late, 6.0, ratio)


def test_the_window_ends_where_training_leaves_the_flow():
    rates = [1e-5 * 4**k for k in range(7)]
    found = find_window(flow(rates, 4, noise_from=0.01), longer=1.0, tolerance=0.02, least_share=0.5)
    wider = find_window(flow(rates, 4, noise_from=0.1), longer=1.0, tolerance=0.02, least_share=0.5)
    assert found.highest < wider.highest
    assert found.lowest == pytest.approx(0.05 * np.log(2) / 100, rel=0.3), "half of the fall, by rate times steps"
    assert found.lowest < found.suggested < found.highest < found.best


def test_longer_runs_open_the_window_downwards():
    rates = [1e-5 * 4**k for k in range(7)]
    probes = flow(rates, 4, noise_from=0.01)
    short, longer = (find_window(probes, times, 0.02, 0.5) for times in (1.0, 10.0))
    assert longer.lowest == pytest.approx(short.lowest / 10)
    assert longer.highest == short.highest
    assert probes.drift_error()[:3].max() < 0.01


def test_no_window_is_told_where_the_loss_falls_at_no_rate():
    rising = Probes(np.array([1e-3, 4e-3, 1.6e-2]), np.array([6.1, 6.4, 7.0]), np.array([6.2, 6.9, 8.0]), 6.0, 4)
    with pytest.raises(ValueError, match=r"falls at none of the learning rates 0.001 to 0.016: from 6 to 6.2 at best"):
        find_window(rising, 1.0, 0.1, 0.8)
