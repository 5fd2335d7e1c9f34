"""The rules that reports on a set of topics are written and rewarded by.

They are kept beside the topics, so that the expert, training and evaluation all go by the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from stages.agent.report.rewards import TextRules
from stages.agent.report.state import Limits
from stages.agent.report.view import View
from stages.artifacts import Dataset
from stages.errors import UserError

FILE: Final = "rules.json"


@dataclass(frozen=True)
class Rules:
    """What is possible, what is seen, and what form a text has."""

    limits: Limits = field(default_factory=Limits)
    view: View = field(default_factory=View)
    text: TextRules = field(default_factory=TextRules)
    documents: int = 3
    """Documents that a search brings."""

    def write(self, directory: Path) -> None:
        """Keep the rules with the dataset in `directory`."""
        (directory / FILE).write_bytes(_RULES.dump_json(self, indent=2) + b"\n")

    @classmethod
    def read(cls, dataset: Dataset) -> Rules:
        """The rules of topics or exercises. Raises UserError when they are missing or damaged."""
        try:
            return _RULES.validate_json((dataset.path / FILE).read_bytes())
        except (OSError, ValidationError) as error:
            fix = "make topics with `agent.report_topics`, exercises with `agent.report_expert`"
            raise UserError(f"{dataset.path} has no sound {FILE}: {error}", fix=fix) from error


_RULES: Final = TypeAdapter(Rules)
