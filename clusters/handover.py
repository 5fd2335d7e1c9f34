"""Hands variables with secret values from the machine that submits to the driver, through the memory of Ray's head.

A job's runtime environment is no place for them: Ray writes it, values and all, into its logs and shows it in its
dashboard. Here they wait under a name that nobody can guess, and are removed by the driver that reads them, or by the
machine that submits when there will be no driver. Workers get them with their work.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "REGRAFT_HANDOVER"
"""Set for the driver: where its variables wait."""
GONE: Final = b""
"""What takes their place when nobody is to have them any more: a dashboard removes nothing, it writes over."""
NAMES_VARIABLE: Final = "REGRAFT_HANDED_ON"
"""Set by the driver: the names of the variables that its workers are to have too, with commas between."""


def new_place() -> str:
    """A name that nobody can guess, of the form that the head takes uploads under."""
    return f"regraft_handover_{secrets.token_hex(16)}.zip"


def packed(variables: Mapping[str, str]) -> bytes:
    """What waits there."""
    return json.dumps(dict(variables)).encode()


def receive() -> None:
    """In the driver, before anything else: take the variables that wait into the environment; exits when they are gone.

    A run without them would fail late, or read what is public where it was meant to read what is private.
    """
    place = os.environ.pop(VARIABLE, "")
    if not place:
        return
    from ray._raylet import GcsClient  # pyrefly: ignore[missing-module-attribute]

    head, key = GcsClient(address=os.environ["RAY_ADDRESS"]), f"gcs://{place}".encode()
    data = head.internal_kv_get(key)
    head.internal_kv_del(key, False)
    if not data:
        sys.exit("the variables handed on to this run are gone from the memory of Ray's head: submit it again")
    variables = json.loads(data)
    os.environ.update(variables)
    os.environ[NAMES_VARIABLE] = ",".join(variables)


def handed_on() -> dict[str, str]:
    """In the driver: the variables that workers are to have."""
    names = filter(None, os.environ.get(NAMES_VARIABLE, "").split(","))
    return {name: os.environ[name] for name in names if name in os.environ}
