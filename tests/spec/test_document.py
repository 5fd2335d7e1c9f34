"""The YAML reader: plain data only, places kept, hostile files refused, never a traceback."""

import math
import string
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.spec.document import Document, plain
from pipelines.spec.problems import SpecError
from stages.errors import UserError

SCALARS = {
    "1e-5": 1e-5,
    "1_000": 1000,
    "0x1F": 31,
    ".5": 0.5,
    "-3.5e2": -350.0,
    "+7": 7,
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "on": "on",
    "yes": "yes",
    "2:30": "2:30",
    "2024-01-01": "2024-01-01",
    "1.2.3": "1.2.3",
    "-": "-",
    "0x": "0x",
    "1__0": 10,
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_follow_yaml_1_2(text, value):
    assert plain(text) == value
    assert type(plain(text)) is type(value)


def test_values_know_their_places():
    document = Document("f", "a: 1\nb:\n  c: [x, yy]\n  d: {e: 5}\n")
    assert (document.place(("b", "c", 1)).line, document.place(("b", "c", 1)).column) == (3, 10)
    assert document.place(("b", "c", 1)).width == 2
    assert document.place(("b", "d", "e")).column == 10
    assert document.place(("b", "d"), key=True).column == 3
    assert document.place(("b", "nothing", "deeper")).line == 3, "the nearest ancestor's place"


def test_keys_are_text_as_written():
    assert Document("f", "0E0: 1\n1_000: 2\ntrue: 3\n~: 4\n'q': 5\n").root == {
        "0E0": 1,
        "1_000": 2,
        "true": 3,
        "~": 4,
        "q": 5,
    }


def test_anchors_and_merges():
    document = Document("f", "base: &b {x: 1, y: 2}\na: *b\nc:\n  <<: *b\n  y: 3\nd:\n  <<: [{x: 9}, *b]\n")
    assert document.root["a"] == {"x": 1, "y": 2}
    assert document.root["c"] == {"x": 1, "y": 3}
    assert document.root["d"] == {"x": 9, "y": 2}


HOSTILE = {
    "python object": "a: !!python/object/apply:os.system [x]",
    "own tag": "a: !secret x",
    "recursive": "a: &a [*a]",
    "no anchor": "a: *b",
    "unclosed": "a: {",
    "deep flow": "{" * 100_000,
    "deep block": "- " * 5_000,
    "tab": "a:\n\t- b",
    "control character": "a: \x01",
    "two documents": "--- 1\n--- 2",
    "list as key": "[a]: 1",
    "bomb": "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "not a number": "a: !!int x",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_at_once_with_a_place(text):
    began = time.monotonic()
    with pytest.raises(SpecError, match=r"f(:\d+:\d+)?: "):
        Document("f", text)
    assert time.monotonic() - began < 5


def test_duplicate_keys_are_problems():
    document = Document("f", "a: 1\nb: 2\na: 3\n")
    assert [(problem.message, problem.hint) for problem in document.problems] == [
        ("the key 'a' stands twice", "first on line 1")
    ]


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Document.read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        Document.read(tmp_path / "latin.yaml")
    with pytest.raises(UserError, match="cannot read"):
        Document.read(tmp_path)


def test_a_quoted_merge_key_is_text():
    assert Document("f", "'<<': null\nb: {\"<<\": 1}").root == {"<<": None, "b": {"<<": 1}}
    assert Document("f", "a: &a {x: 1}\nb: {<<: *a, '<<': 2}").root["b"] == {"<<": 2, "x": 1}


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.printable), inner, max_size=4),
    max_leaves=20,
)


@given(plain_values)
@settings(max_examples=300, deadline=None)
def test_reads_back_what_a_yaml_writer_wrote(value):
    root = Document("f", yaml.safe_dump(value, allow_unicode=True)).root
    assert _same(root, value)


@given(st.text(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_text_is_values_or_a_clear_error(text):
    try:
        Document("f", text)
    except SpecError as error:
        assert str(error).startswith("f")


def _same(found, expected):
    """Equal but for `<<`, which merges, and for floats of YAML 1.1 that 1.2 reads alike."""
    if isinstance(expected, dict):
        return "<<" in expected or (
            found.keys() == expected.keys() and all(_same(found[k], v) for k, v in expected.items())
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(expected, float):
        return math.isclose(found, expected) or found == expected
    if isinstance(expected, str):
        # The writer follows YAML 1.1, for which some numbers of 1.2 are text that needs no quotes.
        return found in (expected, plain(expected))
    return found == expected and type(found) is type(expected)
