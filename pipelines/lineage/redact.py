"""Keeps secrets out of MLflow: a tracking server is read by more people than the machine that ran the pipeline.

Three nets, because each has holes: values under keys that name a secret; strings that look like a credential; and every
value caught by the first net, wherever it turns up again, such as in a command line or an error message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

MASK = "***"
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The file of a wide matrix is long, and the dumper in C writes it ten times as fast."""
_SECRET_KEY = re.compile(
    r"(?:^|[_\-.\s])(?:secrets?|passw(?:or)?d|passphrase|credentials?|bearer"
    r"|(?:api|access|secret|private|account)[_\-]?keys?|apikey|auth|authorization|(?:\w+[_\-])?token)$",
    re.IGNORECASE,
)
_VOCABULARY_TOKEN = re.compile(
    r"(?:^|[_\-.])(?:pad|eos|bos|unk|mask|sep|cls|eot|eoh|start|end|stop|special|image|audio|video|think|tool|per)"
    r"[_\-]token$",
    re.IGNORECASE,
)
_CREDENTIAL = re.compile(
    r"(?<!\w)(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|sk-(?=[\w-]*\d)[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
_URL_USER = re.compile(r"(?P<scheme>(?<![\w+.\-])[a-z][a-z0-9+.\-]{1,20}://)[^\s/@'\"]+@", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"(?<![\w.\-])(?P<key>[\w.\-]*"
    r"(?:secrets?|passw(?:or)?d|passphrase|credentials?|authorization|auth|token|keys?))"
    r"(?P<between>[\"']?\s*[=:]\s*(?:Bearer\s+|Basic\s+)?[\"']?)(?P<value>[^\s\"',;&]+)",
    re.IGNORECASE,
)
_FLAG = re.compile(r"(?P<key>--[\w.\-]+)(?P<between>\s+[\"']?)(?P<value>[^\s\"'-][^\s\"']*)")
_SHORTEST = 8
"""A shorter value caught under a secret key is not hunted elsewhere: it would blank out innocent text."""


def names_secret(key: str) -> bool:
    """Whether a value under `key` must not be shown. `max_tokens`, `tokenizer` and `pad_token` may be."""
    return bool(_SECRET_KEY.search(key)) and not _VOCABULARY_TOKEN.search(key)


class Redactor:
    """Masks the secrets of one run; made from the event that starts it."""

    def __init__(self, source: Any = None) -> None:
        self._found: set[str] = set()
        self._collect(source, secret=False)

    def tree(self, value: Any) -> Any:
        """A copy of a JSON value with everything under secret keys masked and every string cleaned."""
        if isinstance(value, dict):
            return {key: self._under(str(key), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        """`text` without anything that is, or looks like, a credential."""
        for secret in sorted(self._found, key=len, reverse=True):
            text = text.replace(secret, MASK)
        text = _URL_USER.sub(rf"\g<scheme>{MASK}@", text)
        text = _CREDENTIAL.sub(MASK, text)
        return _FLAG.sub(_mask_assignment, _ASSIGNMENT.sub(_mask_assignment, text))

    def document(self, tree: Mapping[str, Any]) -> str:
        """`tree` as a YAML document, masked by key and by what its secrets are."""
        self._collect(tree, secret=False)
        return yaml.dump(self.tree(tree), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120)

    def _under(self, key: str, value: Any) -> Any:
        return _mask(value) if names_secret(key) else self.tree(value)

    def _collect(self, value: Any, *, secret: bool) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                self._collect(item, secret=secret or names_secret(str(key)))
        elif isinstance(value, list | tuple):
            for item in value:
                self._collect(item, secret=secret)
        elif secret and isinstance(value, str) and len(value) >= _SHORTEST and not _harmless(value):
            self._found.add(value)


def _mask(value: Any) -> Any:
    """Switches and blanks are no secrets, nor is `<|im_end|>`; anything else below a secret key may be one."""
    if isinstance(value, dict):
        return {key: _mask(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item) for item in value]
    return value if _harmless(value) else MASK


def _harmless(value: Any) -> bool:
    if isinstance(value, str):
        return not value or (value.startswith("<") and value.endswith(">"))
    return value is None or isinstance(value, bool)


def _mask_assignment(match: re.Match[str]) -> str:
    shown = not names_secret(match["key"]) or _harmless(match["value"])
    return match[0] if shown else f"{match['key']}{match['between']}{MASK}"
