"""Durations and sizes as people write them: `90s`, `2h`, `1h30m`, `4GiB`, `500MB`."""

from __future__ import annotations

import re
from typing import Final

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES: Final = {
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}
LONGEST: Final = 100
"""Characters of a quantity: what is longer is none, and would take long to read."""
LONGEST_SECONDS: Final = 3650 * 86400
LARGEST_BYTES: Final = 1 << 63


def parse_duration(text: str | float) -> float:
    """Seconds in `text`; a bare number is seconds. Raises ValueError."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", str(text)[: LONGEST + 1])
        if not parts or "".join(f"{number}{unit}" for number, unit in parts) != str(text).replace(" ", ""):
            raise ValueError(f"{text!r} is not a duration; write 90s, 15m, 2h or 1h30m")
        seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"a duration must be more than 0 and at most {LONGEST_SECONDS // 86400} days, found {text!r}")
    return seconds


def parse_bytes(text: str | int) -> int:
    """Bytes in `text`; a bare number is bytes. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool):
        size: float = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?b)\s*", str(text), re.IGNORECASE)
        if not match:
            raise ValueError(f"{text!r} is not a size; write 500MB or 4GiB")
        size = float(match[1]) * BYTES[match[2].lower()]
    if not 0 <= size < LARGEST_BYTES:
        raise ValueError(f"a size must be at least 0 and less than 8 EiB, found {text!r}")
    return int(size)


def format_duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3m 20s`, `2h 05m`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def format_bytes(size: float) -> str:
    """`912 B`, `1.2 KiB`, `270 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
