"""Commands that people are told to type: each means the same store as the command that tells it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

DEFAULT_STORE: Final = ".regraft"
STORE_VARIABLE: Final = "REGRAFT_STORE"


def default_store() -> str:
    """The store, as a URL or whole path, that a command takes here when it is told none."""
    return whole(os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)


def whole(store: str) -> str:
    """A store's URL, or its path from the root of the disk."""
    if "://" in store and not store.startswith("file://"):
        return store.rstrip("/")
    return str(Path(store.removeprefix("file://")).absolute())


def naming(text: str, store: str, default: str) -> str:
    """The arguments `text` and, unless a command takes it anyway as the `default`, the store."""
    location = whole(store)
    return text if location == default else f"{text} --store {shlex.quote(location)}"
