"""Planted near-duplicates: what our MinHash and datasketch's find of them, and in how many seconds."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.data.peers import DATASKETCH, python
from benchmarks.findings import SECONDS, Findings, Measure
from stages.data.minhash import NUM_HASHES, band_keys, band_rows, near_duplicates, shingles, signature

SIMILARITY = 0.8
CHANGED = {"twin": 0.012, "relative": 0.06}
"""Share of the words replaced: Jaccard similarities of about 0.89 and 0.54."""
RECALL, PRECISION = Measure("recall", "more"), Measure("precision", "more")


def compare(options: argparse.Namespace) -> Findings:
    """A row for each of the two."""
    texts, kinds = _corpus(options.documents, seed=0)
    findings = Findings(
        f"{len(texts):,} documents, {kinds.count('twin')} twins, {kinds.count('relative')} relatives, "
        f"{NUM_HASHES} hashes, threshold {SIMILARITY}",
        {"datasketch": DATASKETCH},
    )
    for name, (groups, seconds) in {"regraft": _ours(texts), "datasketch": _theirs(texts, options.cache)}.items():
        joined = [groups[index] == groups[index - 1] for index in range(len(texts))]
        hits = sum(joined[index] for index, kind in enumerate(kinds) if kind == "twin")
        alarms = len(texts) - len(set(groups))
        figures = {RECALL: hits / kinds.count("twin"), PRECISION: hits / alarms if alarms else 1.0, SECONDS: seconds}
        findings.add("", name, figures)
    findings.compare("regraft", "datasketch", RECALL, SECONDS)
    return findings


def _corpus(num: int, seed: int) -> tuple[list[str], list[str]]:
    """Documents, each with its kind: `original`, or what it is of the document before it."""
    rng, texts, kinds = random.Random(seed), [], []
    for number in range(num):
        words = [f"w{min(int(rng.paretovariate(0.2)), 50_000)}" for _ in range(rng.randrange(100, 400))]
        texts.append(" ".join(words))
        kinds.append("original")
        for kind in ("twin", "relative")[number % 3 : number % 3 + 1]:
            changed = set(rng.sample(range(len(words)), max(1, round(CHANGED[kind] * len(words)))))
            texts.append(" ".join(f"x{rng.random()}" if place in changed else word for place, word in enumerate(words)))
            kinds.append(kind)
    return texts, kinds


def _ours(texts: list[str]) -> tuple[list[int], float]:
    start = time.perf_counter()
    signatures = np.array([signature(shingles(text)) for text in texts])
    rows = band_rows(SIMILARITY)
    bands = (band_keys(signatures, rows, band) for band in range(NUM_HASHES // rows))
    groups = near_duplicates(bands, signatures.__getitem__, len(texts), SIMILARITY).tolist()
    return groups, time.perf_counter() - start


def _theirs(texts: list[str], cache: Path) -> tuple[list[int], float]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "texts.json"
        file.write_text(json.dumps(texts))
        script = str(Path(__file__).parent / "peer_datasketch.py")
        command = [str(python(cache)), script, str(file), str(NUM_HASHES), str(SIMILARITY)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"datasketch failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout)
    return found["groups"], found["seconds"]
