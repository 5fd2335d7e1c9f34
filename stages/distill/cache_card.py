"""What a cache of a teacher says of itself, beside its shards, and whether it fits. Imported to plan: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from stages.artifacts import Dataset, Model, from_fields, write_json
from stages.errors import UserError

FILE: Final = "teacher.json"
OTHER: Final = {"teacher": "another teacher", "data": "other data"}
Stored = Literal["float16", "float32"]


@dataclass(frozen=True)
class CacheCard:
    """`teacher.json`: whose log-probabilities these are, on what data, and how much of them was kept."""

    teacher: str
    """Content digest of the teacher."""
    data: str
    """Content digest of the data."""
    top_k: int
    temperature: float
    stored: Stored

    @classmethod
    def of(cls, dataset: Dataset) -> CacheCard:
        """The card of `dataset`. Raises UserError when it is no cache of a teacher."""
        file, fix = dataset.path / FILE, "give the result of a `distill.cache`"
        if not file.exists():
            raise UserError(f"{dataset.path} is no cache of a teacher: it has no {FILE}", where="cache", fix=fix)
        return from_fields(cls, file, fix)

    def write(self, directory: Path) -> None:
        """Write `teacher.json` into `directory`."""
        write_json(directory / FILE, self.__dict__)

    def require(self, teacher: Model, data: Dataset, temperature: float) -> None:
        """Raise UserError unless this is the cache of `teacher` on `data` at `temperature`."""
        for role, found, expected in (("teacher", self.teacher, teacher.digest), ("data", self.data, data.digest)):
            if found != expected:
                raise UserError(
                    f"the cache was made of {OTHER[role]}: {_short(found)}, the input `{role}` is {_short(expected)}",
                    where="cache",
                    fix=f"give `distill.cache` the same `{role}` as this stage",
                )
        if self.temperature != temperature:
            raise UserError(
                f"the cache was softened by temperature {self.temperature:g}, the loss asks for {temperature:g}: "
                "tokens outside the cache cannot be softened again",
                where="cache",
                fix=f"set `temperature: {self.temperature:g}`, or make the cache with {temperature:g}",
            )


def _short(digest: str) -> str:
    return digest[:12] or "(unpublished)"
