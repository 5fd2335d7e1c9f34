"""Files made to harm: small ones that grow, names that lead elsewhere, text that is none. All are refused at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clusters.profile import ProfileError, load_profile
from pipelines.cli.session import RunOptions, run_pipeline
from pipelines.main import main
from pipelines.spec.document import Document
from pipelines.spec.load import load, parse
from pipelines.spec.problems import Place, Problem
from pipelines.store import open_store
from stages.errors import UserError
from tests.fuzz.trial import TooSlow, limits, try_file

CPU_SECONDS = 10.0
"""Each takes less than 2 on a machine of 2024; a slow one must not fail for it, and what has no end has none here."""
LONG = "ab" * 300_000
WRITE = "uses: 'tests.toy:Write'"
JOIN = "uses: 'tests.toy:Join'"


def stages(*lines: str) -> str:
    return "name: x\nstages:\n" + "".join(f"  {line}\n" for line in lines)


def axis(count: int) -> str:
    return "[" + ", ".join(map(str, range(count))) + "]"


def bomb() -> str:
    """Each level holds the one before it nine times."""
    levels = (f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    return "name: x\nparams:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(levels)


def merges() -> str:
    wide = ", ".join(f"k{n}: {n}" for n in range(1000))
    return f"name: x\nparams: &p {{{wide}}}\nstages:\n  <<: [{', '.join(['*p'] * 50_000)}]\n"


GROWING: dict[str, tuple[Callable[[], str], str]] = {
    "aliases": (bomb, "holds more than"),
    "merge keys": (merges, "holds more than"),
    "deep flow": (lambda: "name: " + "[" * 100_000, "nested more than"),
    "deep block": (lambda: "- " * 50_000, "nested more than"),
    "deep maps": (lambda: "\n".join(" " * n + "a:" for n in range(3000)), "nested more than"),
    "large file": (
        lambda: stages(*(f"s{n}: {{{WRITE}, with: {{text: abc}}}}" for n in range(240_000))),
        "bytes, which no pipeline needs",
    ),
    "many values": (lambda: f"name: x\nparams: {{a: [{'1,' * 3_000_000}]}}", "holds more than"),
    "arms": (
        lambda: stages(f"a: {{{WRITE}, matrix: {{x: {axis(1000)}, y: {axis(1000)}, z: {axis(1000)}}}}}"),
        "the matrix has 1,000,000,000 arms",
    ),
    "arms of many stages": (
        lambda: stages(*(f"s{n}: {{{WRITE}, matrix: {{repeat: {axis(1000)}, scale: [1, 2]}}}}" for n in range(100))),
        "more than 50,000 stages",
    ),
    "arms that read arms": (
        lambda: stages(
            f"a: {{{WRITE}, matrix: {{scale: {axis(8000)}}}}}",
            f"b: {{{JOIN}, matrix: {{seed: {axis(8000)}}}, inputs: {{texts: a}}}}",
        ),
        "the pipeline grows",
    ),
    "arms that need arms": (
        lambda: stages(
            f"a: {{{WRITE}, matrix: {{scale: {axis(8000)}}}}}",
            f"b: {{{WRITE}, matrix: {{scale: {axis(8000)}}}, needs: a}}",
        ),
        "the pipeline grows",
    ),
    "one stage that reads arms": (
        lambda: stages(
            f"a: {{{WRITE}, matrix: {{scale: {axis(9999)}}}}}", f"b: {{{JOIN}, inputs: {{texts: [{'a, ' * 50_000}]}}}}"
        ),
        "the pipeline grows",
    ),
    "long text in each arm": (
        lambda: stages(f"a: {{{WRITE}, with: {{text: {'x' * 1_000_000}}}, matrix: {{scale: {axis(5000)}}}}}"),
        "the pipeline grows",
    ),
    "long reference": (
        lambda: (
            f"params: {{a: {'x' * 1_000_000}}}\n"
            + stages(f"a: {{{WRITE}, with: {{text: '{'${params.a}' * 300_000}'}}}}")
        ),
        "this text longer than",
    ),
    "long reference in each arm": (
        lambda: (
            f"params: {{a: {'x' * 900_000}}}\n"
            + stages(f"a: {{{WRITE}, with: {{text: '${{params.a}}.'}}, matrix: {{scale: {axis(9000)}}}}}")
        ),
        "the pipeline grows",
    ),
    "long arm": (lambda: stages(f"a: {{{WRITE}, matrix: {{text: [{'x' * 1_000_000}, b]}}}}"), "at most 200 characters"),
    "unknown stages": (
        lambda: stages(*(f"stage{n:05d}: {{{JOIN}, inputs: {{texts: stage-{n:05d}}}}}" for n in range(8_000))),
        "unknown stage 'stage-00000'",
    ),
    "unknown methods": (
        lambda: stages(*(f"s{n}: {{uses: evaluate.perplexitty}}" for n in range(20_000))),
        "did you mean 'evaluate.perplexity'",
    ),
    "long names, almost equal": (
        lambda: f"params:\n  ? {LONG}\n  : 1\n" + stages(f"a: {{{WRITE}, with: {{text: '${{params.{LONG}c}}'}}}}"),
        "no params named",
    ),
    "long gate": (lambda: stages(f"a: {{{WRITE}, expect: {{length: '< {'1' * 200_000}x'}}}}"), "is not a gate"),
    "long timeout": (lambda: stages(f"a: {{{WRITE}, timeout: '{'1' * 200_000}'}}"), "is not a duration"),
    "long cycle": (
        lambda: stages(*(f"s{n}: {{{WRITE}, needs: s{(n + 1) % 5000}}}" for n in range(5000))),
        "wait for each other: s0 → s1",
    ),
    "duplicate keys": (lambda: stages(*[f"a: {{{WRITE}}}"] * 100_000), "the key 'a' stands twice"),
    "long number": (lambda: f"seed: {'9' * 1_000_000}\n" + stages(f"a: {{{WRITE}}}"), "`seed` must be a whole number"),
    "long hexadecimal": (
        lambda: f"seed: 0x{'f' * 1_000_000}\n" + stages(f"a: {{{WRITE}}}"),
        "`seed` must be a whole number",
    ),
    "exponent": (lambda: f"seed: 1e{'9' * 900}\n" + stages(f"a: {{{WRITE}}}"), "must be finite"),
}

REFUSED = {
    "a reference to itself": (
        "params: {a: '${params.a}'}\n" + stages(f"a: {{{WRITE}, with: {{text: '${{params.a}}'}}}}"),
        "cannot refer to another",
    ),
    "a reference in a circle": (
        "params: {a: '${params.b}', b: 'x ${params.a}'}\n" + stages(f"a: {{{WRITE}}}"),
        "cannot refer to another",
    ),
    "a reference in a reference": (
        "params: {a: b, b: c}\n" + stages(f"a: {{{WRITE}, with: {{text: '${{params.${{params.a}}}}'}}}}"),
        "is not closed",
    ),
    "a pipeline elsewhere": (stages(f"a: {{{WRITE}}}").replace("name: x", "name: ../../x"), "`name` must be"),
    "a pipeline of NUL": (stages(f"a: {{{WRITE}}}").replace("name: x", 'name: "a\\0b"'), "`name` must be"),
    "a pipeline of other letters": (stages(f"a: {{{WRITE}}}").replace("name: x", "name: ｘ"), "`name` must be"),
    "a pipeline of no letters": (stages(f"a: {{{WRITE}}}").replace("name: x", "name: .."), "`name` must be"),
    "a stage elsewhere": (stages(f"../a: {{{WRITE}}}"), "stage's name must be"),
    "an absolute stage": (stages(f"/tmp/a: {{{WRITE}}}"), "stage's name must be"),
    "a stage of NUL": (stages(f'"a\\0": {{{WRITE}}}'), "stage's name must be"),
    "a stage turned round": (stages(f'"a\\u202eb": {{{WRITE}}}'), "stage's name must be"),
    "a method elsewhere": (stages("a: {uses: '../../tests/toy:Write'}"), "is not MODULE:CLASS"),
    "a method of the system": (stages("a: {uses: 'os:system'}"), "has no stage 'system'"),
    "an output elsewhere": (
        stages(f"a: {{{WRITE}}}", f"b: {{{JOIN}, inputs: {{texts: 'a.../../text'}}}}"),
        "no output",
    ),
    "an input elsewhere": (stages(f"a: {{{WRITE}}}", f"b: {{{JOIN}, inputs: {{'../texts': a}}}}"), "unknown input"),
    "an arm that moves the cursor": (stages(f'a: {{{WRITE}, matrix: {{text: ["\\e[2J"]}}}}'), "must be printable"),
    "an arm of two lines": (stages(f'a: {{{WRITE}, matrix: {{text: ["a\\nb"]}}}}'), "must be printable"),
    "an arm of a list": (
        "params: {l: [1, 2]}\n" + stages(f"a: {{{WRITE}, matrix: {{text: ['${{params.l}}']}}}}"),
        "list of scalars",
    ),
    "an axis of NUL": (stages(f'a: {{{WRITE}, matrix: {{"\\0": [1]}}}}'), "must be printable"),
    "infinity": (stages(f"a: {{{WRITE}, resources: {{cpus: .inf}}}}"), "must be finite"),
    "not a number": (stages(f"a: {{{WRITE}, resources: {{cpus: .nan}}}}"), "must be finite"),
    "an endless timeout": (stages(f"a: {{{WRITE}, timeout: {'9' * 90}h}}"), "at most 3650 days"),
    "an endless size": (stages(f"a: {{{WRITE}, resources: {{memory: {'9' * 90}TiB}}}}"), "less than 8 EiB"),
    "a stage twice": (stages(f"a: {{{WRITE}}}", f"a: {{{JOIN}}}"), "stands twice"),
    "a key twice": (stages(f"a: {{{WRITE}, with: {{text: a, text: b}}}}"), "stands twice"),
    "a merge of no mapping": (stages("a: {<<: [1, 2]}"), "merges mappings only"),
    "a merge of itself": (stages("a: &a {<<: *a}"), "contains itself"),
    "a tag": (stages("a: !!python/object/apply:os.system [true]"), "the tag"),
    "a control character": (stages(f"a: {{{WRITE}}} # \x07"), "U+0007"),
}

BYTES = {
    "latin": b"name: caf\xe9\n",
    "half a letter": b"name: x\nstages: \xe2\x82",
    "surrogate": b"name: x\n# \xed\xa0\x80\n",
    "utf-16": "name: x\n".encode("utf-16"),
    "utf-32": "name: x\n".encode("utf-32"),
    "overlong": b"name: \xc0\xaf\n",
    "random": bytes(range(256)),
    "NUL": b"name: a\0b\n",
}


def answer(directory: Path, content: bytes) -> str:
    """The error that a file gets; fails when it gets none, or gets it too late."""
    file = directory / "f.yaml"
    file.write_bytes(content)
    found = try_file(file, "pipeline", open_store(str(directory / "store")), CPU_SECONDS)
    assert found.verdict == "refused", found.text[:3000] or "accepted"
    return found.text


@pytest.mark.parametrize(("text", "told"), GROWING.values(), ids=GROWING)
def test_a_file_that_grows_is_refused_soon(text, told, tmp_path):
    assert told in answer(tmp_path, text().encode())


@pytest.mark.parametrize(("text", "told"), REFUSED.values(), ids=REFUSED)
def test_what_leads_elsewhere_is_refused_with_its_line(text, told, tmp_path):
    assert told in answer(tmp_path, text.encode())


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_what_is_no_text_is_refused_with_its_line(content, tmp_path):
    assert re.search(r"f\.yaml:\d+:\d+: not ", answer(tmp_path, content))


def test_the_place_of_a_bad_byte(tmp_path):
    assert "f.yaml:2:9: not UTF-8 text: byte 0xff" in answer(tmp_path, "é: 1\ntext: é€".encode() + b"\xff\n")
    assert "f.yaml:2:4: not YAML: the character U+0007" in answer(tmp_path, "é: 1\nb: \x07".encode())


def test_hostile_values_of_matrices_stay_inside_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "f.yaml").write_text(
        stages(
            f"a: {{{WRITE}, matrix: {{text: [../../../out, /tmp/regraft-out, .., a/b, 'c:d', '*', '$HOME', ';']}}}}",
            f"join: {{{JOIN}, inputs: {{texts: a}}}}",
        )
    )
    store = open_store(str(tmp_path / "inside" / "store"))
    result = run_pipeline(load(Path("f.yaml")), store, RunOptions("inline", track=False, view="quiet"))
    assert result.ok, result.failures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.yaml", "inside"]
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["store"]
    assert not Path("/tmp/regraft-out").exists()


OVERRIDES = [
    "a." + "x." * 5000 + "y=1",
    "a.text=" + "[" * 5000,
    "a.text=&a [*a]",
    "params.t=\0",
    "a.text=${params.t}" * 9,
]


@pytest.mark.parametrize("override", OVERRIDES, ids=["deep name", "deep value", "itself", "NUL", "unknown parameter"])
def test_a_hostile_override_is_refused(override):
    with limits(CPU_SECONDS), pytest.raises(UserError, match="--set"):
        parse(Document("f.yaml", stages(f"a: {{{WRITE}}}")), (override,))


def test_a_terminal_only_gets_printable_characters(tmp_path, monkeypatch, capsys):
    (tmp_path / "f.yaml").write_text(stages('a: {uses: source.model, with: {model: "./\\e[2J\\u202e"}}'))
    monkeypatch.setattr("sys.argv", ["regraft", "plan", str(tmp_path / "f.yaml"), "--store", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as caught:
        main()
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert "f.yaml:3: stage 'a'" in told
    assert told.replace("\n", "").isprintable()


def test_a_place_beyond_the_line_is_shown_at_its_end():
    shown = Problem("x", Place(1, 70_000)).render("f", ["short"])
    assert shown == "f:1:70000: x\n 1 | short\n   |      ^"


def test_a_profile_with_an_endless_number_is_told(tmp_path):
    (tmp_path / "p.yaml").write_text(f"nodes: 1\ncpus: 0x{'f' * 4000}0\ngpus: -0x{'f' * 4000}\n")
    with pytest.raises(ProfileError, match=r"p\.yaml:3: gpus: .*too long to be shown"):
        load_profile(str(tmp_path / "p.yaml"))
    (tmp_path / "p.yaml").write_text(f"? 0x{'f' * 4000}\n: 1\n")
    with pytest.raises(ProfileError, match="unknown key"):
        load_profile(str(tmp_path / "p.yaml"))


def test_the_limits_are_real():
    with pytest.raises(TooSlow), limits(0.2):
        sum(1 for _ in itertools.count())
    with pytest.raises(MemoryError), limits():
        bytearray(3 << 30)
