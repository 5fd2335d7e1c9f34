"""Probes of long context: statements hidden in real text, a question about them, and where the answers stand.

A probe is its token ids with the answers at the end, so that one forward pass scores them (teacher forcing), and the
spans where the context states each answer, so that `counterfactual` can exchange it. It has exactly the length asked
for. Everything is a function of the seed, the tokenizer and the text; `needles_scripts` says what the tasks are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from stages.errors import UserError
from stages.evaluate.needles_scripts import Script, Slot, Task, Template, draw_value, make_script
from stages.evaluate.needles_text import Haystack, Passage, Pieces

Span = tuple[int, int]
"""First position and the one after the last, in `Probe.ids`."""

LEAST_TEXT = 32
"""Tokens of text that a probe has at least, besides needles and question."""

DRAWS = 10_000
"""Values tried before giving up on one of the right length."""


@dataclass(frozen=True)
class Needle:
    """One statement hidden in the text."""

    text: str
    span: Span
    asked: bool
    """Whether the question is about it; the others distract."""


@dataclass(frozen=True)
class Answer:
    """One value that is asked for."""

    value: str
    span: Span
    """Where the answer at the end gives it. A blank that is a token of its own is not part of it."""
    mentions: tuple[Span, ...]
    """Where the context states it, in order: the same tokens."""


@dataclass(frozen=True)
class Probe:
    """A prompt, its answers, and where everything stands."""

    task: Task
    depth: float
    """Where the needle stands in the text: 0 is its beginning, 1 its end."""
    ids: tuple[int, ...]
    """Prompt and answers: what a model reads."""
    prompt_length: int
    """Tokens before the answers."""
    needles: tuple[Needle, ...]
    answers: tuple[Answer, ...]


def make_probe(
    task: Task, length: int, depth: float, *, pieces: Pieces, haystack: Haystack, num_needles: int = 4, seed: str
) -> Probe:
    """A probe of exactly `length` tokens whose needle stands at `depth`, or at the sentence end nearest to it.

    `num_needles` counts the keys, values or variables of the tasks that have several. Raises UserError when `length`
    does not hold the needles and the question with a little text, and when the haystack is too short for it.
    """
    rng = random.Random(f"{seed}/{task}/{length}/{depth}")
    script = make_script(task, rng, depth, num_needles)
    values: list[str] = []
    while len(values) < script.num_values:
        value = draw_value(task, rng)
        values += [value] if value not in values else []
    writer = _Writer(pieces, values)
    room = length - writer.count(script)
    if room < LEAST_TEXT:
        least = length - room + LEAST_TEXT
        raise UserError(
            f"{task} with {len(script.statements)} needles takes {least} tokens of this tokenizer, {LEAST_TEXT} of "
            f"them text; the length is {length}",
            fix=f"give a length of {least} or more" + ("" if task == "single" else ", or fewer needles"),
        )
    return writer.write(task, depth, script, haystack.passage(room, rng))


def counterfactual(probe: Probe, seed: str, *, pieces: Pieces) -> Probe:
    """The same probe with every answer exchanged for another of its kind and token length, in context and answer alike.

    This is symmetric token replacement: positions and everything else stay, and no token of a new value is the one it
    replaces, so that a difference between two runs comes from the values alone. For the changed context with the clean
    answers, join `counterfactual(probe, …).ids[: probe.prompt_length]` and `probe.ids[probe.prompt_length :]`.
    """
    rng, ids = random.Random(f"{seed}/counterfactual/{probe.ids}"), list(probe.ids)
    answers: list[Answer] = []
    for answer in probe.answers:
        old = probe.ids[slice(*answer.span)]
        taken = {other.value for other in (*probe.answers, *answers)}
        value, new = _other_value(probe.task, old, taken, pieces, rng)
        for start, stop in (*answer.mentions, answer.span):
            assert probe.ids[start:stop] == old, "an answer is the same tokens wherever it stands"
            ids[start:stop] = new
        answers.append(replace(answer, value=value))
    needles = [replace(needle, text=pieces.decode(ids[slice(*needle.span)]).strip()) for needle in probe.needles]
    return replace(probe, ids=tuple(ids), needles=tuple(needles), answers=tuple(answers))


def _other_value(
    task: Task, old: tuple[int, ...], taken: set[str], pieces: Pieces, rng: random.Random
) -> tuple[str, list[int]]:
    for _ in range(DRAWS):
        value = draw_value(task, rng)
        _, ids = pieces.value(value)
        differs = len(ids) == len(old) and all(one != other for one, other in zip(ids, old, strict=True))
        if differs and value not in taken:
            return value, ids
    raise UserError(
        f"none of {DRAWS} values has {len(old)} tokens that all differ from those of {pieces.decode(old)!r}",
        fix="make the probe with another seed",
    )


class _Writer:
    """Puts a script and a passage together as tokens, noting where everything stands."""

    def __init__(self, pieces: Pieces, values: list[str]) -> None:
        self._pieces = pieces
        self._values = values
        self._ids: list[int] = []
        self._mentions: dict[int, list[Span]] = {}

    def count(self, script: Script) -> int:
        """Tokens of everything but the passage."""
        templates = [*(statement.template for statement in script.statements), [script.question], script.answer]
        parts = [part for template in templates for part in template]
        return len(self._pieces.first(script.before)) + sum(
            len(blank) + len(ids) for blank, ids in map(self._part, parts)
        )

    def write(self, task: Task, depth: float, script: Script, passage: Passage) -> Probe:
        """The probe; statements that fall into one gap keep their order."""
        self._ids = self._pieces.first(script.before)
        placed = sorted(
            ((passage.gap(statement.depth), statement) for statement in script.statements), key=lambda at: at[0]
        )
        needles, done = [], 0
        for gap, statement in placed:
            self._ids += passage.ids[done:gap]
            done, start = gap, len(self._ids)
            self._add(statement.template)
            span = (start, len(self._ids))
            needles.append(Needle(self._pieces.decode(self._ids[slice(*span)]).strip(), span, statement.asked))
        self._ids += passage.ids[done:]
        self._add([script.question])
        prompt_length = len(self._ids)
        self._add(script.answer)
        asked = [part.index for part in script.answer if isinstance(part, Slot)]
        answers = [
            Answer(self._values[slot], self._mentions[slot][-1], tuple(self._mentions[slot][:-1])) for slot in asked
        ]
        return Probe(task, depth, tuple(self._ids), prompt_length, tuple(needles), tuple(answers))

    def _add(self, template: Template) -> None:
        for part in template:
            blank, ids = self._part(part)
            self._ids += blank
            if isinstance(part, Slot):
                self._mentions.setdefault(part.index, []).append((len(self._ids), len(self._ids) + len(ids)))
            self._ids += ids

    def _part(self, part: str | Slot) -> tuple[list[int], list[int]]:
        if isinstance(part, Slot):
            return self._pieces.value(self._values[part.index])
        return [], self._pieces.following(part)
