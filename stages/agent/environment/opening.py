"""Which environment questions belong to: they say so themselves, in a file beside them.

Whoever writes questions for another environment than `research` declares it with `declare`; the stages that play
questions open it with `open_environment`, and know no more of it. A further environment is a subclass of `Environment`,
a stage that writes its questions, and a case here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from stages.agent.environment.base import Environment
from stages.artifacts import Dataset, write_json
from stages.errors import UserError

FILE: Final = "environment.json"
RESEARCH: Final = "research"


def declare(directory: Path, name: str, **settings: Any) -> None:
    """Say which environment the questions in `directory` belong to, and how it is set."""
    write_json(directory / FILE, {"environment": name, "settings": settings})


def declared(questions: Dataset) -> tuple[str, dict[str, Any]]:
    """Name and settings of the questions' environment: `research` where nothing is declared.

    Raises UserError for a file that is damaged.
    """
    file = questions.path / FILE
    if not file.exists():
        return RESEARCH, {}
    try:
        found = json.loads(file.read_bytes())
        return str(found["environment"]), dict(found["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged: {error!r}", fix="make the questions again") from error


def check_index(inputs: Mapping[str, Any]) -> None:
    """The `questions` of a stage, if it reads any, and its `index` belong together. Raises UserError otherwise."""
    if "questions" not in inputs:
        return
    (name, _), index = declared(inputs["questions"]), inputs.get("index")
    if name == RESEARCH and index is None:
        raise UserError("the questions are about the documents of an index, and none is given", fix="add input `index`")
    if name != RESEARCH and index is not None:
        raise UserError(f"the questions are of {name}, which searches no index", fix="leave the input `index` out")


def open_environment(questions: Dataset, index: Dataset | None = None) -> Environment:
    """The environment of these questions. Raises UserError where it cannot be opened."""
    check_index({"questions": questions, "index": index})
    name, settings = declared(questions)
    if index is not None:
        from stages.agent.environment import research

        return research.open_environment(index, questions)
    if name == "reasoning_gym":
        from stages.agent.environment.gym.environment import open_gym

        return open_gym(questions, settings)
    raise UserError(f"there is no environment {name!r}: {questions.path / FILE}", fix="update regraft")
