"""Which language a text is in, by py3langid: naive Bayes over byte n-grams, 97 languages, on the CPU, offline."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from stages.errors import UserError, listing
from stages.source.locate import nearest

PACKAGE: Final = "py3langid"
LONGEST: Final = 4000
"""Characters looked at: the beginning tells."""


def language_of(text: str) -> tuple[str, float]:
    """The ISO 639-1 code of the likeliest language of `text` and its probability."""
    code, probability = _identifier().classify(text[:LONGEST])
    return str(code), float(probability)


def require_language(code: str) -> None:
    """Raise UserError unless `code` is a language that can be told."""
    known = sorted(str(label) for label in _identifier().labels)
    if code not in known:
        raise UserError(
            f"language: {code!r} is unknown{nearest(code, known)}", fix=f"one of {listing(known, limit=120)}"
        )


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
