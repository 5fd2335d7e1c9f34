"""Pairs: what differs, what stays, and which of them count."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from grafts.loader import load_model
from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.needles_text import Haystack, Pieces
from stages.transfer.bench import Bench
from stages.transfer.heads import HeadShape
from stages.transfer.probing import Pair, Prober, Words
from stages.transfer.recording import Body
from tests.tiny import tiny_model, tiny_text


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_model(tmp_path_factory.mktemp("model"), max_positions=1024))


@pytest.fixture(scope="module")
def prober(source: Model) -> Prober:
    pieces = Pieces(source)
    return Prober(pieces, Haystack(tiny_text(64), pieces, 8192), length=600)


@pytest.fixture(scope="module")
def words(source: Model, prober: Prober) -> Words:
    return Words(source, prober.haystack.ids)


@pytest.fixture(scope="module")
def body(source: Model) -> Body:
    return Body(load_model(source.path, dtype=torch.float32), HeadShape(2, 4, 2))


def differences(pair: Pair) -> list[int]:
    return [place for place, (one, two) in enumerate(zip(pair.ids, pair.other, strict=True)) if one != two]


def test_the_needle_is_another_and_the_answer_is_forced(prober: Prober):
    for pair in islice(prober.retrieval("multi_value", 0.5, 3, "0"), 3):
        assert len(pair.ids) == len(pair.other) == 600
        assert pair.wrong is not None
        assert max(differences(pair)) < min(pair.targets), "the answer is that of the clean text in both"
        answer = [pair.ids[place] for place in pair.targets]
        changed = [pair.other[place] for place in differences(pair)]
        assert sorted(answer) == sorted(pair.ids[place] for place in differences(pair))
        assert sorted(pair.wrong) == sorted(changed)
        assert all(one != two for one, two in zip(answer, pair.wrong, strict=True))


@pytest.mark.parametrize("reach", [4, 64])
def test_only_words_before_the_predicted_one_are_others(prober: Prober, words: Words, reach: int):
    for pair in islice(prober.general(words, reach, "0"), 20):
        (target,) = pair.targets
        assert len(pair.ids) == len(pair.other) == target + 1
        assert 300 <= target < 600
        places = differences(pair)
        assert places
        assert all(target - reach <= place < target - 1 for place in places)
        for place in (*places, target):
            text = prober.pieces.decode([pair.ids[place]])
            assert text.startswith(" ")
            assert text.strip().isalpha()
        assert all(prober.pieces.decode([pair.other[place]]).startswith(" ") for place in places)
        assert pair.ids[target] not in [pair.other[place] for place in places]


def test_pairs_are_a_function_of_the_seed_and_differ(prober: Prober, words: Words):
    for make in (
        lambda seed: prober.retrieval("single", 0.5, 2, seed),
        lambda seed: prober.general(words, 16, seed),
    ):
        one, same, other = (list(islice(make(seed), 3)) for seed in ("0", "0", "1"))
        assert one == same
        assert len({pair.ids for pair in (*one, *other)}) == 6


def test_text_without_words_is_refused(source: Model, prober: Prober):
    with pytest.raises(UserError, match="0 different words of one token"):
        Words(source, prober.pieces.first("12 34 56"))


def test_a_trial_holds_the_logit_difference(body: Body, prober: Prober):
    pair = next(prober.retrieval("single", 0.5, 2, "0"))
    trial = Bench(body, 0.5, require_correct=False, least_drop=1.0).trial(pair)
    for ids, found in ((pair.ids, trial.clean_score), (pair.other, trial.other_score)):
        logits = body.model(input_ids=torch.tensor([ids])).logits[0].double()
        total = sum(
            0.5**place * (logits[at - 1, pair.ids[at]] - logits[at - 1, wrong]).item()
            for place, (at, wrong) in enumerate(zip(pair.targets, pair.wrong or (), strict=True))
        )
        assert found == pytest.approx(total / sum(0.5**place for place in range(len(pair.targets))), abs=1e-6)
    assert trial.start == differences(pair)[0]


def test_without_a_wrong_answer_the_model_says_which(body: Body, prober: Prober, words: Words):
    pair = next(prober.general(words, 64, "0"))
    trial = Bench(body, 0.9, require_correct=False, least_drop=1.0).trial(pair)
    logits_V = body.model(input_ids=torch.tensor([pair.other])).logits[0, pair.targets[0] - 1]
    logits_V[pair.ids[pair.targets[0]]] = -torch.inf
    assert trial.columns.tolist() == [[pair.ids[pair.targets[0]], int(logits_V.argmax())]]


def test_what_a_random_model_fails_is_dropped_and_counted(body: Body, prober: Prober):
    def accepted(required: bool) -> list[bool]:
        bench = Bench(body, 0.9, require_correct=required, least_drop=1.0)
        return [bool(one) for one in bench.accepted(prober.retrieval("single", 0.5, 2, "0"), 2, 4)]

    assert accepted(True) == [False] * 4
    assert accepted(False) == [True] * 2


def test_a_right_answer_that_hardly_changes_does_not_count(body: Body):
    """The model repeats its favourite token: right, whatever the text says."""
    ids = torch.randint(3, 384, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    other = [5, *ids[1:]]
    best = int(body.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    pair = Pair((*ids, best), (*other, best), (20,), None)
    strict, lax = (Bench(body, 0.9, require_correct=True, least_drop=least) for least in (1.0, -1.0))
    assert list(strict.accepted(iter([pair]), 1, 1)) == [None]
    assert list(lax.accepted(iter([pair]), 1, 1)) != [None]


def test_a_wrong_answer_needs_no_second_text(body: Body, prober: Prober, monkeypatch: pytest.MonkeyPatch):
    read: list[tuple[int, ...]] = []
    record = body.record
    monkeypatch.setattr(body, "record", lambda ids, reads: read.append(ids) or record(ids, reads))
    pairs = list(islice(prober.retrieval("single", 0.5, 2, "0"), 2))
    assert list(Bench(body, 0.9, require_correct=True, least_drop=1.0).accepted(iter(pairs), 2, 2)) == [None, None]
    assert read == [pair.ids[: pair.targets[-1]] for pair in pairs]
