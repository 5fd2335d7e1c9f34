"""What is behind an error, and whether that is a full disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
SIGN: Final = "os error 28"
"""What the errors of Rust libraries say of a full disk."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a full disk or a quota that is used up."""
    return any((isinstance(e, OSError) and e.errno in DISK_FULL) or SIGN in str(e) for e in causes(error))
