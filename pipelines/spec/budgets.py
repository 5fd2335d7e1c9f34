"""`--set budget=NAME`: the same pipeline at another size, from a file of values beside it.

For `pipelines/flagship.yaml` and `budget=gpu` that is `pipelines/budgets/flagship.gpu.yaml`, a mapping of what `--set`
can name to values:

    params.tokens: 300_000_000
    align.resources.gpus: 1
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.spec.document import Document, Mapping, Sequence
from pipelines.spec.problems import nearest
from stages.errors import UserError

KEY = "budget="


def with_budgets(file: Path, overrides: Iterable[str]) -> tuple[str, ...]:
    """`overrides` with each `budget=NAME` replaced by what its file says, in place: a later --set counts.

    Raises UserError when there is no such file, SpecError or UserError when it is not a mapping.
    """
    return tuple(_expanded(file, overrides))


def _expanded(file: Path, overrides: Iterable[str]) -> Iterator[str]:
    for text in overrides:
        if text.startswith(KEY):
            yield from _read(_file(file, text.removeprefix(KEY).strip(), text))
        else:
            yield text


def _file(pipeline: Path, name: str, text: str) -> Path:
    folder = pipeline.parent / "budgets"
    known = sorted(path.name[len(pipeline.stem) + 1 : -len(".yaml")] for path in folder.glob(f"{pipeline.stem}.*.yaml"))
    if name not in known:
        fix = (
            nearest(name, known)
            if known
            else f"write {folder / f'{pipeline.stem}.{name}.yaml'}: a mapping of names to values"
        )
        raise UserError(f"--set {text}: {pipeline} has no budget {name!r}", fix=fix)
    return folder / f"{pipeline.stem}.{name}.yaml"


def _read(file: Path) -> Iterator[str]:
    document = Document.read(file)
    if not isinstance(document.root, Mapping):
        document.problem((), "a budget is a mapping of names, as --set takes them, to values")
    document.raise_problems()
    for name, value in document.root.items():
        yield f"{name}={json.dumps(_plain(value), ensure_ascii=False)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) else value
