"""Waiting for an answer from elsewhere in Ray while keeping one's own room.

`ray.get` and `ray.wait` lend the CPUs of the task that calls them to the next task that waits for some, until they
return: a stage that asks an actor something now and then would soon run beside more stages than the machine has cores
or memory for.
"""

from __future__ import annotations

from typing import Any


def answer(reference: Any, seconds: float | None = None) -> Any:
    """What `ray.get(reference)` returns or raises; TimeoutError after so many `seconds`."""
    return reference.future().result(seconds)
