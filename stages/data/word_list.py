"""Documents that hold a word of a list, as C4 leaves them out (Raffel et al., arXiv 1910.10683, 2.2)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stages.data.shingles import words_of
from stages.errors import UserError


class WordList:
    """Words and phrases to look for in documents, as whole words, whatever their case."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._starting: dict[str, list[tuple[str, list[str]]]] = {}
        for entry in entries:
            words = words_of(entry)
            self._starting.setdefault(words[0] if words else "", []).append((entry.lower(), words))

    def first_in(self, text: str) -> str | None:
        """The first entry that `text` holds, or None. One without letters, such as an emoji, is found anywhere."""
        words, low = words_of(text), text.lower()
        for entry, _ in self._starting.get("", ()):
            if entry in low:
                return entry
        for place, word in enumerate(words):
            for entry, wanted in self._starting.get(word, ()):
                # Words leave punctuation out: only the second question tells `s&m` from `S. M. Smith`.
                if words[place : place + len(wanted)] == wanted and entry in low:
                    return entry
        return None


def read_word_list(file: Path) -> tuple[str, ...]:
    """The entries of `file`, one a line; # begins a remark. Raises UserError when there are none, or it is no text."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"bad_words: {file} cannot be read: {error}", fix="give a text file in UTF-8") from None
    entries = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not entries:
        raise UserError(f"bad_words: {file} is empty", fix="write a word or phrase a line, or leave bad_words out")
    return entries
