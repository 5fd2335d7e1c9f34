"""Probes: exact length, needles at their place in the decoded text, counterfactuals that differ in values only."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts import Model
from stages.errors import UserError
from stages.evaluate.needles import Probe, counterfactual, make_probe
from stages.evaluate.needles_scripts import SPREAD, TASKS, Task, make_script
from stages.evaluate.needles_text import Haystack, Passage, Pieces
from tests.tiny import tiny_text, tiny_tokenizer

DEPTHS = (0.0, 0.3, 0.5, 1.0)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    return Pieces(Model(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), vocab_size=512)))


@pytest.fixture(scope="module")
def haystack(pieces: Pieces) -> Haystack:
    return Haystack(tiny_text(64), pieces, 8192)


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def probe(
    task: Task, pieces: Pieces, haystack: Haystack, depth: float = 0.5, length: int = 900, seed: str = "0"
) -> Probe:
    return make_probe(task, length, depth, pieces=pieces, haystack=haystack, seed=seed)


@pytest.mark.parametrize("length", [600, 601, 1024])
def test_length_is_exact(task: Task, length: int, pieces: Pieces, haystack: Haystack):
    assert len(probe(task, pieces, haystack, length=length).ids) == length


@pytest.mark.parametrize("depth", DEPTHS)
def test_needles_stand_in_the_decoded_text_at_their_depth(task: Task, depth: float, pieces: Pieces, haystack: Haystack):
    found = probe(task, pieces, haystack, depth)
    text = pieces.decode(found.ids)
    question = re.search(r"\n(What (is|are all) the special|Question: Find all)", text)
    assert question, "the question stands in the text"
    start, end = text.index("\n") + 1, question.start()
    for needle in found.needles:
        assert text.count(needle.text) == 1
        assert start <= text.index(needle.text) < end
    asked = [needle for needle in found.needles if needle.asked]
    places = [(text.index(needle.text) - start) / (end - start - len(needle.text)) for needle in asked]
    wanted = [depth] if len(asked) == 1 else [depth * (1 - SPREAD) + SPREAD * place / 3 for place in range(4)]
    assert places == pytest.approx(wanted, abs=0.12)
    assert places == sorted(places)
    assert len(found.needles) == (1 if task == "single" else 4)


def test_needles_stand_between_sentences(task: Task, pieces: Pieces, haystack: Haystack):
    found = probe(task, pieces, haystack)
    for needle in found.needles:
        before, after = pieces.decode(found.ids[: needle.span[0]]), pieces.decode(found.ids[needle.span[1] :])
        assert before.endswith((".", "\n"))
        assert after.startswith((" The ", " One of", " VAR", "\n"))


def test_spans_decode_to_the_values(task: Task, pieces: Pieces, haystack: Haystack):
    found = probe(task, pieces, haystack)
    text = pieces.decode(found.ids)
    for answer in found.answers:
        for span in (*answer.mentions, answer.span):
            assert pieces.decode(found.ids[slice(*span)]) == answer.value
        assert text.count(answer.value) == len(answer.mentions) + 1
        assert all(stop < found.prompt_length for _, stop in answer.mentions)
        assert answer.span[0] >= found.prompt_length
    assert pieces.decode(found.ids[found.prompt_length :]).strip() == ", ".join(a.value for a in found.answers)


def test_tokens_are_those_of_the_text_encoded_in_one_piece(task: Task, pieces: Pieces, haystack: Haystack):
    found = probe(task, pieces, haystack)
    start = next(needle for needle in found.needles if needle.asked).span[0]
    assert pieces.following(pieces.decode(found.ids[start:])) == list(found.ids[start:])


def test_the_answers_are_what_the_text_says(pieces: Pieces, haystack: Haystack):
    tracking = probe("variable_tracking", pieces, haystack)
    text = pieces.decode(tracking.ids)
    holders = [re.findall(r"VAR (\w+) = \d{5}\.", text)[0]]
    links = {source: name for name, source in re.findall(r"VAR (\w+) = VAR (\w+)\.", text)}
    while holders[-1] in links:
        holders.append(links[holders[-1]])
    assert [answer.value for answer in tracking.answers] == holders
    for name in ("multi_key", "multi_value"):
        found = probe(name, pieces, haystack)
        said = re.findall(r"One of the special magic numbers for ([\w-]+) is: (\d{7})\.", pieces.decode(found.ids))
        asked = re.search(r"special magic numbers? for ([\w-]+) mentioned", pieces.decode(found.ids))
        assert asked
        assert [answer.value for answer in found.answers] == [value for key, value in said if key == asked[1]]
        assert len(said) == 4
        assert len({key for key, _ in said}) == (4 if name == "multi_key" else 1)


def test_a_probe_is_a_function_of_its_seed(task: Task, pieces: Pieces, haystack: Haystack):
    one, same, other = (probe(task, pieces, haystack, seed=seed) for seed in ("1", "1", "2"))
    assert one == same
    assert one.ids != other.ids


@settings(max_examples=25, deadline=None)
@given(task=st.sampled_from(TASKS), depth=st.floats(0, 1), seed=st.text(max_size=4))
def test_a_counterfactual_differs_in_its_values_alone(
    task: Task, depth: float, seed: str, pieces: Pieces, haystack: Haystack
):
    found = probe(task, pieces, haystack, depth, seed=seed)
    other = counterfactual(found, seed, pieces=pieces)
    changed = {place for place, (one, two) in enumerate(zip(found.ids, other.ids, strict=True)) if one != two}
    spans = [span for answer in found.answers for span in (*answer.mentions, answer.span)]
    assert changed == {place for start, stop in spans for place in range(start, stop)}
    assert not {answer.value for answer in found.answers} & {answer.value for answer in other.answers}
    assert [(a.span, a.mentions) for a in found.answers] == [(a.span, a.mentions) for a in other.answers]
    for answer in other.answers:
        assert all(pieces.decode(other.ids[slice(*span)]) == answer.value for span in (*answer.mentions, answer.span))
    for needle in other.needles:
        assert pieces.decode(other.ids[slice(*needle.span)]).strip() == needle.text
    assert replace(other, ids=found.ids, needles=found.needles, answers=found.answers) == found
    assert counterfactual(found, seed, pieces=pieces) == other


def test_too_short_a_length_is_told_with_the_least(task: Task, pieces: Pieces, haystack: Haystack):
    with pytest.raises(UserError, match=f"{task} with . needles takes .* tokens .* the length is 64") as caught:
        probe(task, pieces, haystack, length=64)
    least = int(re.findall(r"\d+", caught.value.fix)[0])
    assert len(probe(task, pieces, haystack, length=least).ids) == least


def test_too_little_text_is_told_with_both_numbers(pieces: Pieces):
    short = Haystack(tiny_text(1), pieces, 8192)
    with pytest.raises(UserError, match=rf"the text has {short.ends[-1]} tokens .* the probe needs \d+ of them"):
        probe("single", pieces, short)


def test_a_haystack_is_the_documents(pieces: Pieces):
    texts = ['One sentence. "Another!" said she. A third', "Next document? Yes."]
    found = Haystack(texts, pieces, 10_000)
    assert pieces.decode(found.ids) == "\n\n".join(texts)
    parts = [pieces.decode(found.ids[start:stop]) for start, stop in zip([0, *found.ends], found.ends, strict=False)]
    assert parts == ["One sentence.", ' "Another!"', " said she.", " A third", "\n\nNext document?", " Yes."]


def test_a_passage_ends_with_a_sentence(haystack: Haystack, pieces: Pieces):
    found = haystack.passage(100, random.Random(0))
    assert len(found.ids) == 100
    assert pieces.decode(found.ids).endswith(".")
    assert found.gaps[0] == 0
    assert found.gaps[-1] == 100
    assert found.gaps == sorted(set(found.gaps))
    assert all(pieces.decode(found.ids[:gap]).endswith(".") for gap in found.gaps[1:])


def test_the_nearest_gap_is_taken():
    passage = Passage(list(range(100)), [0, 10, 48, 60, 100])
    assert [passage.gap(depth) for depth in (0, 0.04, 0.06, 0.5, 0.54, 1)] == [0, 0, 10, 48, 48, 100]


def test_a_token_for_the_beginning_is_kept(tmp_path: Path):
    from tokenizers import Tokenizer, processors

    folder = tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    pieces = Pieces(Model(folder))
    assert pieces.prefix == [tokenizer.token_to_id("<|im_start|>")]
    found = make_probe("single", 512, 0.5, pieces=pieces, haystack=Haystack(tiny_text(64), pieces, 4096), seed="0")
    assert found.ids[0] == pieces.prefix[0]
    assert len(found.ids) == 512


def test_keys_do_not_repeat():
    statements = make_script("multi_key", random.Random(0), 0.5, 64).statements
    assert len({statement.template[0] for statement in statements}) == 64
