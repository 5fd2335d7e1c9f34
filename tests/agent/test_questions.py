"""Facts, drafts and what makes a question stand; the stage proves its environment."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from stages.agent.conversation.records import read_tasks
from stages.agent.environment.answers import exact_match, f1, normalise
from stages.agent.environment.collection import Document
from stages.agent.environment.episodes import prove
from stages.agent.environment.research import make_tools, open_environment
from stages.agent.environment.toolbox import Toolbox
from stages.agent.questions.drafts import Drafter, verify
from stages.agent.questions.facts import facts, mention, sentences, word_cloze
from stages.agent.questions.selected import is_heldout
from stages.agent.questions.selection import Selection
from stages.agent.questions.stage import AgentQuestions
from stages.artifacts import Dataset
from stages.errors import UserError
from tests.agent.world import TEXTS, make_index, run


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Dataset:
    return make_index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def drafts(index):
    collection, tools = make_tools(index.path)
    drafter = Drafter(collection, 8, random.Random(0))
    return {kind: list(drafter.drafts(kind)) for kind in ("fact", "cloze", "bridge")}, tools


@pytest.mark.parametrize(
    ("title", "text", "found"),
    [
        ("Alien (film)", "Alien is a 1979 film directed by Ridley Scott. It is long.",
         {("who", "directed", "Ridley Scott"), ("year", "released", "1979")}),
        ("X", "X was published on 3 May 1999 by J.K. Rowling.", {("year", "published", "1999")}),
        ("Imitation", "Imitation was directed by John M. Stahl.", {("who", "directed", "John M. Stahl")}),
        ("Gods", "Gods is written by American author Rick Riordan.", set()),
        ("York", "York is located in the North of England.", {("where", "located", "North of England")}),
        ("Alien", "The film was directed by Ridley Scott.", set()),
    ],
)  # fmt: skip
def test_facts_are_about_the_title(title, text, found):
    assert {(f.asks, f.verb, f.answer) for f in facts(Document(1, title, text))} == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It ran. J. Weld wrote it, no. 7 of ten! “So?” asked St. Ives (yes). 1911 it was.",
         ["It ran.", "J. Weld wrote it, no. 7 of ten!", "“So?” asked St.", "Ives (yes). 1911 it was."]),
        ("Elle était là. Éva dort. É. Zola écrit.", ["Elle était là.", "Éva dort.", "É. Zola écrit."]),
        ("東京は首都だ。人が多い！「行こう。」と言った。", ["東京は首都だ。", "人が多い！", "「行こう。」と言った。"]),
        ("हिन्दी एक भाषा है। यह पुरानी है।", ["हिन्दी एक भाषा है।", "यह पुरानी है।"]),
        ("Он умер. Она жила.", ["Он умер.", "Она жила."]),
    ],
)  # fmt: skip
def test_sentences_end_in_any_script(text, found):
    assert sentences(text) == found


def test_a_mention_is_blanked_out_once_and_whole():
    document = Document(1, "T", "A b. She saw Jaws at the old cinema in town with friends, and Jaws again.")
    assert mention(document, "Jaws", 3) is None, "twice in its sentence"
    assert mention(document, "cinema in", 2).sentence == "… the old ____ town with …"
    assert mention(document, "inem", 2) is None, "not a word"
    for sentence in ("We met Scarlett Johansson.", "We met Miss Scarlett.", "We met Scarlett-Ann."):
        assert mention(Document(1, "T", sentence), "Scarlett", 9) is None, "another name"
    assert mention(Document(1, "T", "The Scarlett sank."), "Scarlett", 9).sentence == "The ____ sank."


def test_a_cloze_hides_one_word():
    document = Document(1, "T", "The quiet keeper watched seven distant ships pass.")
    cloze = word_cloze(document, 20, random.Random(1))
    assert cloze.sentence.replace("____", cloze.answer) == document.text
    assert word_cloze(Document(1, "T", "Too short."), 5, random.Random(0)) is None


def test_answers():
    assert normalise(" The  Éclair-maker’s, ") == "éclair maker s"
    assert exact_match("the rolling stones.", ["Rolling Stones"])
    assert not exact_match("", [""])
    assert not exact_match("Stones Rolling", ["Rolling Stones"])
    assert exact_match("An A.", ["a"]) is exact_match("A", ["B"]) is False
    assert exact_match("a", ["A"])
    assert (exact_match("+", ["+"]), exact_match("-", ["+"]), f1("A", ["A"])) == (True, False, 1)
    assert (normalise("दिल्ली, मुंबई"), normalise("ดี")) == ("दिल्ली मुंबई", "ดี")
    assert not exact_match("दिली", ["दिल्ली"])
    assert f1("John F Kennedy", ["John Kennedy", "x"]) == pytest.approx(0.8)
    assert (f1("Kennedy John", ["John Kennedy"]), f1("x", ["y"]), f1("", ["y"]), f1("x", [])) == (1, 0, 0, 0)


def test_bridges_go_through_two_documents(drafts):
    (bridge,) = [d for d in drafts[0]["bridge"] if d.answer == "Anna Quill"]
    assert bridge.question.endswith("which the singer had seen as a …”. Who directed it?")
    assert "Silver Harbour" not in bridge.question
    assert [hop.document.title for hop in bridge.path] == ["Paper Lanterns (album)", "Silver Harbour"]
    assert bridge.task().thoughts[2] == "What is missing is Silver Harbour."
    assert len(bridge.task().solution) == 4
    assert verify(bridge, drafts[1]) is None


def test_each_way_to_fail_is_told_apart(drafts, index):
    found, tools = drafts
    fact = next(d for d in found["fact"] if d.answer == "Anna Quill")
    bridge = next(d for d in found["bridge"] if d.answer == "Anna Quill")
    (hop,) = fact.path
    rye = make_tools(index.path)[0].read(7)
    assert verify(fact, tools) is None
    assert verify(replace(fact, question="Did Anna Quill direct it?"), tools) == "told"
    assert verify(replace(fact, answer="the"), tools) == "told", "nothing is left of it"
    assert verify(replace(fact, path=(replace(hop, query="rye bread"),)), tools) == "not-found"
    assert verify(replace(fact, answer="Rex"), tools) == "not-shown"
    elsewhere = replace(bridge.path[0], query="rye bread", document=rye)
    assert verify(replace(bridge, path=(elsewhere, bridge.path[1])), tools) == "not-shown", "the title to go on with"
    shortcut = replace(bridge, path=(bridge.path[1], replace(bridge.path[1], query="film")), cloze=None)
    assert verify(shortcut, tools) == "shortcut"


def test_a_document_is_found_by_its_own_number(drafts):
    """A snippet that says "[7]" is not document 7."""
    found, tools = drafts
    fact = next(d for d in found["fact"] if d.answer == "Anna Quill")
    number = fact.path[0].document.id
    for listed, expected in ((f"[9] Notes: see [{number}] there", "not-found"), (f"[9] A: b\n[{number}] C: d", None)):
        assert verify(fact, {**tools, "search": lambda query, listed=listed: listed}) == expected


def test_a_sentence_that_fits_twice_is_ambiguous(tmp_path):
    twice = [f"{name} -- {name} keeps a {pet} in the narrow garden behind the house." for name, pet in
             (("Ada Low", "tortoise"), ("Ben Low", "hedgehog"))]  # fmt: skip
    collection, tools = make_tools(make_index(tmp_path, (*TEXTS, *twice)).path)
    document = collection.read(13)
    sentence = next(
        d for d in Drafter(collection, 8, random.Random(3)).drafts("cloze") if d.path[0].document == document
    )
    cloze = replace(sentence.cloze, sentence="keeps a ____ in the narrow garden", answer="tortoise")
    hop = replace(sentence.path[0], query="Ada Low keeps in the narrow garden")
    draft = replace(sentence, question="keeps a ____?", answer="tortoise", path=(hop,), cloze=cloze)
    assert verify(draft, tools) == "ambiguous"
    assert verify(replace(draft, cloze=replace(cloze, sentence="Low keeps a ____ in the wide garden")), tools) is None


def test_a_question_is_asked_once(drafts):
    found, tools = drafts
    selection = Selection(tools)
    for draft in [found["fact"][0]] * 2:
        selection.judge(draft)
    assert len(selection.kept) == 1
    assert selection.counts()["rejected_repeated"] == 1


def test_the_side_depends_on_the_subject_alone():
    names = [f"subject {n}" for n in range(2000)]
    held = [name for name in names if is_heldout(name, 0.2)]
    assert 320 < len(held) < 480
    assert set(held) <= {name for name in names if is_heldout(name, 0.4)}


def test_the_first_questions_are_a_sample_of_all(drafts):
    found, tools = drafts
    selection = Selection(tools)
    for draft in [*found["fact"], *found["cloze"]]:
        selection.judge(draft)
    kinds = [draft.kind for draft in selection.split(0.01)["train"]]
    assert sorted(kinds) != kinds != sorted(kinds, reverse=True)


def test_the_stage_writes_questions_that_hold(index, tmp_path):
    options = {"kinds": ("fact", "bridge", "cloze"), "per_kind": 8, "heldout_fraction": 0.4}
    context = run(AgentQuestions, {"index": index}, tmp_path, **options)
    sides = [Dataset(tmp_path / "out" / name) for name in ("train", "heldout")]
    subjects = []
    for side in sides:
        environment = open_environment(index, side)
        with Toolbox(environment.tools) as toolbox:
            assert prove(environment, toolbox) == []
        subjects.append({task.solution[-1].arguments["id"] for task in environment.tasks})
    assert not subjects[0] & subjects[1]
    counts = context.results
    assert counts["train_questions"] + counts["heldout_questions"] == sum(len(read_tasks(side)) for side in sides)
    assert counts["questions_bridge"] >= 2
    again = run(AgentQuestions, {"index": index}, tmp_path / "again", **options)
    assert again.results == counts
    shard = "out/train/shard-00000.parquet"
    assert (tmp_path / shard).read_bytes() == (tmp_path / "again" / shard).read_bytes()


def test_no_questions_says_why(index, tmp_path):
    with pytest.raises(UserError, match="no questions for heldout") as caught:
        run(AgentQuestions, {"index": index}, tmp_path, kinds=("fact",), heldout_fraction=0.01)
    assert "cloze" in caught.value.fix
