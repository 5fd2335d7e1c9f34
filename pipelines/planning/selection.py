"""Which stages of a pipeline a run is about: `--only`, `--from`, `--until`, `--force`.

`only` and `from` add up; without either, every stage is meant. `until` then leaves those stages out that its stages do
not need. A stage above a chosen one is taken as it is, and every other stage is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.spec.matrix import stage_base
from pipelines.spec.pipeline import Pipeline
from pipelines.spec.problems import nearest
from stages.errors import UserError

Role = Literal["chosen", "above", "left"]


@dataclass(frozen=True)
class Selection:
    """What was asked for, by the names of stages; the bare name of a matrix means all its arms."""

    only: tuple[str, ...] = ()
    from_: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    force: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.only or self.from_ or self.until or self.force)

    def arguments(self) -> list[str]:
        """The options that say the same on a command line."""
        groups = {"--only": self.only, "--from": self.from_, "--until": self.until, "--force": self.force}
        return [part for option, names in groups.items() for name in names for part in (option, name)]

    def as_json(self) -> dict[str, list[str]]:
        """The selection as plain values; `from_json` reads it back."""
        return {name: list(names) for name, names in vars(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Selection:
        """A selection from plain values. Raises TypeError for what is none."""
        return cls(**{name: tuple(names) for name, names in content.items()})


EVERYTHING = Selection()


@dataclass(frozen=True)
class Chosen:
    """A selection applied to a pipeline."""

    chosen: frozenset[str]
    above: frozenset[str]
    forced: frozenset[str]

    def role(self, stage: str) -> Role:
        """What becomes of a stage."""
        return "chosen" if stage in self.chosen else "above" if stage in self.above else "left"


def choose(pipeline: Pipeline, selection: Selection) -> Chosen:
    """Apply `selection`. Raises UserError naming the nearest stage for a name that is none."""
    chosen = set(arms(pipeline, selection.only, "--only"))
    if start := set(arms(pipeline, selection.from_, "--from")):
        chosen |= below(pipeline, start)
    if not selection.only and not selection.from_:
        chosen = set(pipeline.stages)
    if end := set(arms(pipeline, selection.until, "--until")):
        wanted = above(pipeline, end)
        if not chosen & wanted:
            names = " ".join(selection.arguments())
            given = {"--only": selection.only, "--from": selection.from_}
            first = " and ".join(option for option, stages in given.items() if stages)
            raise UserError(f"{names} chooses no stage", fix=f"--until names a stage at or below those of {first}")
        chosen &= wanted
    forced = set(arms(pipeline, selection.force, "--force"))
    for name in sorted(forced - chosen):
        raise UserError(f"--force {name}: this stage is not chosen", fix=f"add --only {name}, or leave --force out")
    return Chosen(frozenset(chosen), frozenset(above(pipeline, chosen) - chosen), frozenset(forced))


def arms(pipeline: Pipeline, names: Iterable[str], option: str) -> list[str]:
    """The stages that `names` mean. Raises UserError naming the nearest stage for a name that is none."""
    found: list[str] = []
    for name in names:
        matching = [stage for stage in pipeline.stages if stage == name or stage.startswith(f"{name}[")]
        if not matching:
            valid = dict.fromkeys([*(stage_base(stage) for stage in pipeline.stages), *pipeline.stages])
            raise UserError(f"{option}: {pipeline.name} has no stage {name!r}", fix=nearest(name, valid))
        found.extend(matching)
    return found


def below(pipeline: Pipeline, names: set[str]) -> set[str]:
    """`names` and every stage that waits, directly or not, for one of them."""
    found = set(names)
    for stage in pipeline.stages.values():
        if found.intersection(stage.upstream):
            found.add(stage.name)
    return found


def above(pipeline: Pipeline, names: set[str]) -> set[str]:
    """`names` and every stage that one of them waits for, directly or not."""
    found = set(names)
    for stage in reversed(list(pipeline.stages.values())):
        if stage.name in found:
            found.update(stage.upstream)
    return found
