"""A cached teacher against the teacher itself, through the stages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from grafts.loader import load_model
from stages.artifacts import Dataset, Model
from stages.data.windows import TokenWindows
from stages.distill import caching
from stages.distill.cache import CacheParameters, DistillCache
from stages.distill.cached import CachedTeacher
from stages.distill.logits import DistillLogits, LogitsParameters
from stages.errors import StoppedError, UserError
from stages.evaluate import distance
from stages.stage import Context
from tests.distill.test_logits import QUICK
from tests.tiny import tiny_model, tokens_dataset

VOCABULARY = 384


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("cache")
    path = tiny_model(root / "teacher", num_layers=3)
    data = tokens_dataset(root / "data", path, num_windows=20, sequence_length=16)
    teacher = dataclasses.replace(Model(path), digest="t" * 64)
    return {"teacher": teacher, "data": dataclasses.replace(data, digest="d" * 64)}


def cache(inputs: dict, directory: Path, *, stopping=lambda: False, **params) -> tuple[Dataset, dict[str, float]]:
    stage = DistillCache(CacheParameters(**{"precision": "fp32", **params}))
    stage.check(inputs)
    context = Context(inputs, out=directory / "out", scratch=directory / "scratch", stopping=stopping)
    context.scratch.mkdir(parents=True, exist_ok=True)
    stage.run(context)
    return Dataset(directory / "out/cache", digest=directory.name), context.results


def distil(inputs: dict, directory: Path, **params) -> dict[str, float]:
    stage = DistillLogits(LogitsParameters(**{**QUICK, "tokens": 3 * 8 * 16, **params}))
    stage.check(inputs)
    context = Context(inputs, out=directory / "out", scratch=directory / "scratch", seed=1)
    stage.run(context)
    return {name: value for name, value in context.results.items() if name in ("loss", "kl_to_parent")}


def test_it_holds_the_data_and_what_the_teacher_says(inputs: dict, tmp_path: Path):
    found, figures = cache(inputs, tmp_path, top_k=5, stored="float32", batch_size=3)
    ids = TokenWindows(inputs["data"], tmp_path / "a").tensor()
    assert torch.equal(TokenWindows(found, tmp_path / "b").tensor(), ids)
    with torch.no_grad():
        log = load_model(inputs["teacher"].path, dtype=torch.float32)(ids[[7, 19], :-1]).logits.log_softmax(-1)
    said = CachedTeacher(found, tmp_path / "c").tensors([7, 19])
    torch.testing.assert_close(said["top_log_probs"], log.topk(5).values, rtol=1e-4, atol=1e-5)
    assert (said["top_ids"] == log.topk(5).indices).float().mean() > 0.99
    rest = 1 - said["top_log_probs"].exp().sum(-1)
    torch.testing.assert_close(said["tail_log_mass"].exp(), rest, rtol=1e-4, atol=1e-5)
    assert 0 < figures["tail_mass"] < 1
    size = sum(shard.stat().st_size for shard in found.shards)
    assert figures["bytes_per_token"] == size / (20 * 16)


@pytest.mark.parametrize("params", [{}, {"divergence": "jsd", "temperature": 2.0, "ce_weight": 0.3}])
def test_the_whole_vocabulary_offline_equals_online(inputs: dict, tmp_path: Path, params: dict):
    """Not only the loss: the trained student is the same."""
    temperature = params.get("temperature", 1.0)
    found, figures = cache(inputs, tmp_path, top_k=VOCABULARY, stored="float32", temperature=temperature)
    assert figures["tail_mass"] == 0
    heldout = {**inputs, "heldout": inputs["data"]}
    online = distil(heldout, tmp_path / "online", **params)
    offline = distil({**heldout, "cache": found}, tmp_path / "offline", **params)
    assert offline == pytest.approx(online, rel=1e-4)
    assert online["loss"] > 1e-4


def test_half_precision_costs_little(inputs: dict, tmp_path: Path):
    wide, figures = cache(inputs, tmp_path / "wide", top_k=64, stored="float32")
    half, half_figures = cache(inputs, tmp_path / "half", top_k=64)
    losses = [distil({**inputs, "cache": found}, tmp_path / found.digest / "student")["loss"] for found in (wide, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert half_figures["bytes_per_token"] < 0.8 * figures["bytes_per_token"]


def test_the_teacher_does_not_run_beside_a_cache(inputs: dict, tmp_path: Path, monkeypatch):
    found, _ = cache(inputs, tmp_path, top_k=8)
    student = Model(tiny_model(tmp_path / "student", num_layers=1))
    monkeypatch.setattr("stages.distill.recipe.Distillation._load_teacher", lambda _: pytest.fail("it was loaded"))
    assert distil({**inputs, "cache": found, "student": student}, tmp_path)["loss"] > 0


def test_it_goes_on_where_it_was_stopped_and_gives_equal_bytes(inputs: dict, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(caching, "SHARD_TOKENS", 7 * 16)
    asked = iter([False, True])
    with pytest.raises(StoppedError, match="after shard 1 of 3"):
        cache(inputs, tmp_path / "a", top_k=4, batch_size=7, stopping=lambda: next(asked))
    first = tmp_path / "a/scratch/shards-float32/shard-00000.parquet"
    written = first.stat().st_mtime_ns
    found, _ = cache(inputs, tmp_path / "a", top_k=4, batch_size=7)
    assert [pq.read_metadata(shard).num_rows for shard in found.shards] == [7, 7, 6]
    assert found.shards[0].stat().st_mtime_ns == written
    again, _ = cache(inputs, tmp_path / "b", top_k=4, batch_size=7)
    files = [{file.name: file.read_bytes() for file in each.path.iterdir()} for each in (found, again)]
    assert files[0] == files[1]


def test_it_does_not_go_on_in_another_arithmetic(inputs: dict, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(caching, "SHARD_TOKENS", 7 * 16)
    asked = iter([False, True])
    with pytest.raises(StoppedError):
        cache(inputs, tmp_path / "a", top_k=4, precision="bf16", stopping=lambda: next(asked))
    mixed, _ = cache(inputs, tmp_path / "a", top_k=4, precision="fp32")
    whole, _ = cache(inputs, tmp_path / "b", top_k=4, precision="fp32")
    pairs = zip(mixed.shards, whole.shards, strict=True)
    assert all(ours.read_bytes() == theirs.read_bytes() for ours, theirs in pairs)


def test_another_teacher_data_or_temperature_is_refused(inputs: dict, tmp_path: Path):
    found, _ = cache(inputs, tmp_path, top_k=4)
    given = {**inputs, "cache": found}
    for role, kind, digest in (("teacher", "another teacher", "x" * 64), ("data", "other data", "y" * 64)):
        other = dataclasses.replace(inputs[role], digest=digest)
        with pytest.raises(UserError, match=rf"made of {kind}: {role[0]}{{12}}, the input `{role}` is {digest[:12]}"):
            DistillLogits(LogitsParameters()).check({**given, role: other})
    with pytest.raises(UserError, match="softened by temperature 1, the loss asks for 2"):
        DistillLogits(LogitsParameters(temperature=2)).check(given)
    with pytest.raises(UserError, match="hidden_weight and attention_weight need the teacher itself"):
        DistillLogits(LogitsParameters(hidden_weight=1)).check(given)
    with pytest.raises(UserError, match="on_policy_fraction need the teacher itself"):
        DistillLogits(LogitsParameters(on_policy_fraction=0.5, prompt_tokens=4)).check(given)
    with pytest.raises(UserError, match="kl_weight is 0: nothing that the cache holds would enter"):
        DistillLogits(LogitsParameters(kl_weight=0, ce_weight=1)).check(given)
    with pytest.raises(UserError, match=r"is no cache of a teacher: it has no teacher\.json"):
        DistillLogits(LogitsParameters()).check({**inputs, "cache": inputs["data"]})


def test_a_card_of_another_version_is_told(inputs: dict, tmp_path: Path):
    found, _ = cache(inputs, tmp_path, top_k=4)
    for content, message in (("{}", r"teacher\.json do not fit \(lacks: data, stored, teacher"), ("", "is not JSON")):
        (found.path / "teacher.json").write_text(content)
        with pytest.raises(UserError, match=message):
            DistillLogits(LogitsParameters()).check({**inputs, "cache": found})


def test_a_damaged_shard_is_named(inputs: dict, tmp_path: Path):
    found, _ = cache(inputs, tmp_path, top_k=4)
    found.shards[0].write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"shard-00000\.parquet cannot be read"):
        CachedTeacher(found, tmp_path / "c")


def test_a_shard_of_another_width_than_the_card_says_is_refused(inputs: dict, tmp_path: Path):
    found, _ = cache(inputs, tmp_path, top_k=4)
    card = json.loads((found.path / "teacher.json").read_text())
    (found.path / "teacher.json").write_text(json.dumps({**card, "top_k": 3}))
    with pytest.raises(UserError, match=r"has a row of 60 values of top_ids, dataset\.json declares 45"):
        CachedTeacher(found, tmp_path / "c")


def test_what_exists_at_once_heeds_the_vocabulary(inputs: dict, tmp_path: Path, monkeypatch):
    whole, _ = cache(inputs, tmp_path / "a", top_k=4)
    top, seen = caching._Writer._top, []
    monkeypatch.setattr(distance, "CHUNK_LOGITS", 5 * VOCABULARY)
    monkeypatch.setattr(caching._Writer, "_top", lambda self, logits: seen.append(len(logits)) or top(self, logits))
    parts, _ = cache(inputs, tmp_path / "b", top_k=4)
    assert set(seen) == {5}
    ids, again = (CachedTeacher(each, tmp_path / "c").tensors([3])["top_ids"] for each in (whole, parts))
    assert torch.equal(ids, again)


def test_more_tokens_than_there_are_is_refused(inputs: dict):
    with pytest.raises(UserError, match="top_k: 385, the teacher has a vocabulary of 384"):
        DistillCache(CacheParameters(top_k=385)).check(inputs)


def test_the_card_says_whose_it_is(inputs: dict, tmp_path: Path):
    found, _ = cache(inputs, tmp_path, top_k=4)
    card = json.loads((found.path / "teacher.json").read_text())
    assert card == {"data": "d" * 64, "teacher": "t" * 64, "stored": "float16", "temperature": 1.0, "top_k": 4}
