"""What the probes say: the four tasks in RULER's words (arXiv 2404.06654, section 3 and appendix).

single             S-NIAH: one key with one value, among text
multi_key          MK-NIAH: several keys with a value each, one of them asked for
multi_value        MV-NIAH: one key with several values, all of them asked for
variable_tracking  VT: a value passed on from variable to variable, all variables that hold it asked for

Values are numbers of seven digits, variables five capital letters. Unlike RULER's, statements of variable tracking end
in a full stop and stand in real text, no worked example precedes it, and listed answers stand in the text's order.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

Task = Literal["single", "multi_key", "multi_value", "variable_tracking"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)
LISTING: Final = ("multi_value", "variable_tracking")
"""Tasks with several answers: some of them can be right."""

SPREAD: Final = 0.5
"""Share of the text over which the statements of multi_value and variable_tracking spread, evenly and in order."""

# fmt: off
ADJECTIVES: Final = (
    "amber", "brave", "calm", "dusty", "eager", "fancy", "gentle", "hollow", "icy", "jolly", "keen", "lively",
    "mellow", "noble", "odd", "plain", "quaint", "rustic", "silent", "tidy",
)
NOUNS: Final = (
    "anchor", "basket", "candle", "dragon", "engine", "falcon", "garden", "hammer", "island", "jacket", "kettle",
    "lantern", "marble", "needle", "orchard", "pepper", "saddle", "temple", "valley", "window",
)
# fmt: on


@dataclass(frozen=True)
class Slot:
    """A place in a template that holds the value `index`, after a blank."""

    index: int


Template = Sequence[str | Slot]


@dataclass(frozen=True)
class Statement:
    """What a needle says, how deep in the text it stands (0 to 1), and whether it is asked about."""

    template: Template
    depth: float
    asked: bool = True


@dataclass(frozen=True)
class Script:
    """A probe with slots for its values; `answer` holds those that are asked for."""

    before: str
    statements: list[Statement]
    question: str
    answer: Template
    num_values: int


def draw_value(task: Task, rng: random.Random) -> str:
    """A variable of five capital letters, or a number of seven digits."""
    if task == "variable_tracking":
        return "".join(rng.choices(string.ascii_uppercase, k=5))
    return str(rng.randint(1_000_000, 9_999_999))


def make_script(task: Task, rng: random.Random, depth: float, num_needles: int) -> Script:
    """The script of a probe with its needle at `depth`; `single` has one needle whatever `num_needles`."""
    return _SCRIPTS[task](rng, depth, num_needles)


def _single(rng: random.Random, depth: float, _: int) -> Script:
    key = _keys(rng, 1)[0]
    before = (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    return Script(before, [Statement(_magic(key, 0), depth)], _ask_one(key), [Slot(0)], 1)


def _multi_key(rng: random.Random, depth: float, num_needles: int) -> Script:
    keys = _keys(rng, num_needles)
    distractors = [Statement(_magic(key, place), rng.random(), asked=False) for place, key in enumerate(keys) if place]
    statements = [Statement(_magic(keys[0], 0), depth), *distractors]
    return Script(_SEVERAL, statements, _ask_one(keys[0]), [Slot(0)], num_needles)


def _multi_value(rng: random.Random, depth: float, num_needles: int) -> Script:
    key = _keys(rng, 1)[0]
    statements = [Statement(_magic(key, place), at) for place, at in enumerate(_spread(depth, num_needles))]
    question = (
        f"\nWhat are all the special magic numbers for {key} mentioned in the provided text? "
        f"The special magic numbers for {key} mentioned in the provided text are"
    )
    return Script(_SEVERAL, statements, question, _listed(num_needles), num_needles)


def _variable_tracking(rng: random.Random, depth: float, num_needles: int) -> Script:
    value = rng.randint(10_000, 99_999)
    links: list[Template] = [(" VAR", Slot(0), f" = {value}.")]
    links += [(" VAR", Slot(place), " = VAR", Slot(place - 1), ".") for place in range(1, num_needles)]
    statements = [Statement(link, at) for link, at in zip(links, _spread(depth, num_needles), strict=True)]
    before = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    question = (
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above. "
        "Answer: According to the chain(s) of variable assignment in the text above, "
        f"{num_needles} variables are assigned the value {value}, they are:"
    )
    return Script(before, statements, question, _listed(num_needles), num_needles)


_SCRIPTS: Final[dict[Task, Callable[[random.Random, float, int], Script]]] = {
    "single": _single,
    "multi_key": _multi_key,
    "multi_value": _multi_value,
    "variable_tracking": _variable_tracking,
}

_SEVERAL: Final = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. "
    "I will quiz you about the numbers afterwards.\n"
)


def _magic(key: str, index: int) -> Template:
    return (f" One of the special magic numbers for {key} is:", Slot(index), ".")


def _ask_one(key: str) -> str:
    return (
        f"\nWhat is the special magic number for {key} mentioned in the provided text? "
        f"The special magic number for {key} mentioned in the provided text is"
    )


def _listed(count: int) -> Template:
    parts: list[str | Slot] = [Slot(0)]
    for index in range(1, count):
        parts += [",", Slot(index)]
    return parts


def _keys(rng: random.Random, count: int) -> list[str]:
    pairs = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]


def _spread(depth: float, count: int) -> list[float]:
    first = depth * (1 - SPREAD)
    return [first + SPREAD * place / (count - 1) for place in range(count)]
