"""Conversations out of records: what is wrong with one is told, nothing is guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from stages.agent.conversation.messages import Message, Role, Trajectory
from stages.data.reading import fault_of
from stages.errors import listing
from stages.source.locate import nearest

ROLES: Final = get_args(Role)
OPTIONAL: Final = ("reward", "answers", "question", "kind")
"""Fields that a record may have beside its messages."""


def conversation(number: int, fields: Mapping[str, Any], messages_field: str) -> Trajectory:
    """The trajectory that a record holds. Raises ValueError with what is wrong with it.

    Without `reward` it counts as fully rewarded; without `question` the user's first message is it.
    """
    messages = _messages(fields[messages_field], messages_field)
    asked = _text(fields.get("question"), "question")
    found = Trajectory(
        task=str(number),
        messages=messages,
        reward=_reward(fields.get("reward")),
        question=asked or next((message.content for message in messages if message.role == "user"), ""),
        answers=_answers(fields.get("answers")),
        kind=_text(fields.get("kind"), "kind"),
    )
    return found if found.answer is None else Trajectory(**{**vars(found), "ending": "answer"})


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else f"a {type(value).__name__}"
        raise ValueError(f"holds {what} in field {field!r}, expected a list of messages")
    messages = tuple(_message(each, f"message {place} of {field!r}") for place, each in enumerate(value))
    if not any(message.role == "assistant" for message in messages):
        raise ValueError(f"has no message of the assistant in field {field!r}: there is nothing to learn from")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__} as {where}, expected an object with role and content")
    for name in ("role", "content"):
        if not isinstance(value.get(name), str):
            found = f"of type {type(value[name]).__name__}" if name in value else f"missing, among {_names(value)}"
            raise ValueError(f"has in {where} a {name} that is {found}, expected text")
    role: Any = value["role"]
    if role not in ROLES:
        raise ValueError(f"has role {role!r} in {where}, expected {', '.join(ROLES)}{nearest(role, ROLES)}")
    if fault := fault_of(value["content"]):
        raise ValueError(f"has in {where} content that is {fault}")
    return Message(role, value["content"])


def _reward(value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"has reward {value!r}, expected a number from 0 to 1")
    return float(value)


def _answers(value: Any) -> tuple[str, ...]:
    found: Sequence[Any] = () if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and not fault_of(each) for each in found):
        raise ValueError(f"has answers {value!r}, expected a text or a list of texts")
    return tuple(found)


def _text(value: Any, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or fault_of(value):
        raise ValueError(f"has {field} {value!r}, expected text")
    return value


def _names(value: Mapping[str, Any]) -> str:
    return listing([str(name) for name in value])
