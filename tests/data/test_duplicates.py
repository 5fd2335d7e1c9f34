"""MinHash: the estimate, the banding, groups, and planted near-duplicates found again."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from stages.data.corpus import read_documents, unite
from stages.data.drops import Drops
from stages.data.minhash import (
    NUM_HASHES,
    band_keys,
    band_rows,
    near_duplicates,
    shingles,
    signature,
)
from stages.data.screening import Portion, Screening, screen
from stages.data.shingles import hash_ngrams, hash_words, words_of
from tests.data.test_prepare import written


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def edited(rng: random.Random, text: list[str], changes: int) -> list[str]:
    """`text` with so many words replaced, at places that share no 5-gram."""
    places = rng.sample(range(2, len(text) - 2, 5), changes)
    return [f"new{rng.random()}" if place in places else word for place, word in enumerate(text)]


def jaccard(one: str, two: str) -> float:
    texts = words_of(one), words_of(two)
    sets = [{tuple(text[start : start + 5]) for start in range(len(text) - 4)} for text in texts]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_ngrams_of_hashes_tell_runs_of_words_apart_and_only_those():
    text = words_of("The cat, the CAT; the dog. 猫が好き")
    assert text == ["the", "cat", "the", "cat", "the", "dog", "猫", "が", "好", "き"]
    assert words_of("हिन्दी में, தமிழ் ดี") == ["हिन्दी", "में", "தமிழ்", "ดี"]
    assert words_of("❤️ x") == ["x"], "a mark without a letter is no word"
    hashes = hash_ngrams(hash_words(text), 2)
    runs = [tuple(text[start : start + 2]) for start in range(len(text) - 1)]
    assert len(set(hashes.tolist())) == len(set(runs))
    assert hashes[0] == hashes[2]
    assert hashes[0] != hash_ngrams(hash_words(["cat", "the"]), 2)[0]
    assert len(hash_ngrams(hash_words(text), 11)) == 0


def test_a_signature_estimates_the_jaccard_similarity():
    rng, errors = random.Random(0), []
    for changes in (0, 3, 6, 12, 24, 40):
        text = words(rng, 400)
        one, two = " ".join(text), " ".join(edited(rng, text, changes))
        estimate = np.mean(signature(shingles(one)) == signature(shingles(two)))
        errors.append(estimate - jaccard(one, two))
    assert errors[0] == 0
    assert np.abs(errors).max() < 0.13
    assert abs(np.mean(errors)) < 0.05


def test_a_signature_does_not_depend_on_blocks_order_or_repetition():
    values = shingles(" ".join(words(random.Random(1), 6000)))
    assert len(values) > 4096
    naive = np.min([signature(values[start : start + 100]) for start in range(0, len(values), 100)], axis=0)
    assert (signature(values) == naive).all()
    assert (signature(np.r_[values[::-1], values]) == naive).all()
    assert len(shingles("only three words")) == 1
    assert len(shingles("")) == 0


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_bring_together_what_is_at_the_threshold(similarity: float):
    rows = band_rows(similarity)
    assert 1 - (1 - similarity**rows) ** (NUM_HASHES // rows) >= 0.99
    assert rows == NUM_HASHES or 1 - (1 - similarity ** (rows + 1)) ** (NUM_HASHES // (rows + 1)) < 0.99


def test_groups_equal_those_of_comparing_all_pairs():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 2**32, (30, NUM_HASHES), np.uint32)
    signatures = originals[rng.integers(0, 30, 200)]
    noise = rng.random(signatures.shape) < rng.choice([0.02, 0.05, 0.5], (200, 1))
    signatures = np.where(noise, rng.integers(0, 2**32, signatures.shape, np.uint32), signatures)
    rows = band_rows(0.8)
    bands = (band_keys(signatures, rows, band) for band in range(NUM_HASHES // rows))
    found = near_duplicates(bands, signatures.__getitem__, 200, 0.8)
    alike = (signatures[:, None] == signatures[None]).mean(-1) >= 0.8
    naive = np.arange(200)
    for _ in range(200):
        naive = np.array([naive[alike[index]].min() for index in range(200)])
    assert (found == naive).all()
    assert 30 < len(set(found.tolist())) < 150


def planted(num: int, seed: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Documents of which every third has a near-duplicate (Jaccard 0.85 or more) and every third a distant relative
    (0.6 or less), and the pairs of the first kind.
    """
    rng = random.Random(seed)
    texts, pairs = [], []
    for number in range(num):
        text = words(rng, rng.randrange(120, 300))
        texts.append(" ".join(text))
        if number % 3 == 0:
            pairs.append((len(texts) - 1, len(texts)))
            texts.append(" ".join(edited(rng, text, max(1, len(text) // 80))))
        elif number % 3 == 1:
            texts.append(" ".join(edited(rng, text, len(text) // 16)))
    return texts, pairs


def united(texts: list[str], directory: Path, **options: object) -> tuple[list[str], Drops]:
    dataset = written(directory / "text", texts)
    portion, drops = Portion(dataset.shards[0], 0, 0, directory / "portion.arrow"), Drops()
    drops.merge(screen(Screening(signed=True), portion))
    corpus = unite([portion], directory / "c.arrow", drops, **{"exact": True, "similarity": 0.8, **options})
    return read_documents(corpus.file, list(range(len(corpus)))), drops


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path):
    texts, pairs = planted(240, seed=3)
    similar = [jaccard(texts[one], texts[two]) for one, two in pairs]
    assert min(similar) >= 0.85
    kept, drops = united(texts, tmp_path)
    gone = set(texts) - set(kept)
    hits = sum(texts[one] in gone or texts[two] in gone for one, two in pairs)
    assert hits / len(pairs) >= 0.95
    assert hits / len(gone) >= 0.95
    assert drops.counts["near_duplicates"] == len(gone) == len(texts) - len(kept)


def test_the_document_that_stays_does_not_depend_on_the_order(tmp_path: Path):
    texts, _ = planted(60, seed=5)
    texts += texts[:10]
    forwards, _ = united(texts, tmp_path / "a")
    backwards, drops = united(texts[::-1], tmp_path / "b")
    assert sorted(forwards) == sorted(backwards)
    assert drops.counts["duplicates"] == 10


def test_the_sample_says_which_document_it_resembles(tmp_path: Path):
    texts, _ = planted(3, seed=0)
    _, drops = united(texts, tmp_path)
    (sample,) = drops.samples["near_duplicates"]
    assert {sample.where, sample.why.removeprefix("resembles ")} == {f"shard-00000.parquet row {row}" for row in (0, 1)}


def test_documents_without_words_resemble_none(tmp_path: Path):
    texts = ["…", "!!!", "* * *", "—", "five words of plain text"]
    kept, drops = united([*texts, "!!!"], tmp_path, exact=False)
    assert sorted(kept) == sorted(texts)
    assert dict(drops.counts) == {"near_duplicates": 1}


def test_without_similarity_only_equal_documents_go(tmp_path: Path):
    texts, _ = planted(30, seed=1)
    kept, drops = united([*texts, texts[0]], tmp_path, similarity=None)
    assert len(kept) == len(texts)
    assert dict(drops.counts) == {"duplicates": 1}
    assert len(united([*texts, texts[0]], tmp_path / "all", similarity=None, exact=False)[0]) == len(texts) + 1
