"""Whether what a stage reports is what it says it reports: gates are checked against that before the run."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from stages.stage import Stage


def undeclared(stage: Stage, reported: Iterable[str]) -> list[str]:
    """Figures that the stage reports and no pattern of `metrics` names; all of them where it declares none."""
    return [name for name in reported if not any(fnmatchcase(name, each) for each in stage.metrics)]
