"""Where records come from: files here or elsewhere, a hub dataset, or made on the spot; what goes for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from stages.errors import UserError
from stages.source.files import GZIP, dataset_files, kind_of, of_one_kind
from stages.source.generated import is_generated
from stages.source.licence import card_licence, reference_licence
from stages.source.locate import HubReference, hub_reference
from stages.source.remote import RemoteFile, remote_files
from stages.stage import EXECUTION, Parameters, Source, Stage

SHOWN_FAULTS: Final = 20
"""Bad rows that the report names."""


@dataclass(frozen=True)
class Origin:
    """What a parameter names, looked up once."""

    text: str
    """As it is written."""
    found: HubReference | list[Path] | list[RemoteFile] | None
    """A hub dataset, files here or elsewhere; None for what is generated."""

    @classmethod
    def of(cls, text: str, generated: str) -> Origin:
        """Look `text` up; `generated` is what may be written for something made up. Raises UserError for nothing."""
        if "://" in text:
            return cls(text, of_one_kind(remote_files(text), text))
        if is_generated(text, generated):
            return cls(text, None)
        return cls(text, hub_reference(text) if text.startswith("hub:") else dataset_files(text))

    def sources(self) -> Mapping[str, Source]:
        """Every file (one elsewhere with its version), or the reference as written.

        How a file here is read is part of its name, since it counts by its content.
        """
        if not isinstance(self.found, list):
            return {"dataset": str(self.found or self.text)}
        return dict(_source(f"file-{number:05d}", file) for number, file in enumerate(self.found))

    def files(self, folder: Path) -> Iterator[tuple[Path | str, Path]]:
        """The name of each file and where it is to be read; one from elsewhere is in `folder` meanwhile."""
        for file in self.found if isinstance(self.found, list) else ():
            if isinstance(file, Path):
                yield file, file
                continue
            here = file.fetch(folder)
            yield file.url, here
            here.unlink()

    def licence(self) -> str:
        """What the source declares of itself, or ""; asks the hub for that of a hub dataset."""
        from stages.source.documents import hub_licence

        if self.found is None:
            return "CC0-1.0"
        if isinstance(self.found, HubReference):
            return hub_licence(self.found)
        first = self.found[0]
        if isinstance(first, RemoteFile):
            return ""
        return card_licence(first.parent) or reference_licence(self.text)

    @property
    def name(self) -> str:
        """As pinned; by the file's name for a local path, which is not part of the result."""
        pinned = self.text.startswith(("hub:", "package:", "generated:")) or "://" in self.text
        return self.text if pinned else Path(self.text).name


def _source(name: str, file: Path | RemoteFile) -> tuple[str, Source]:
    if isinstance(file, RemoteFile):
        return name, f"{file.url}@{file.version}"
    return f"{name}{kind_of(file.name)}{GZIP if file.suffix == GZIP else ''}", file


class OriginParameters(Parameters):
    """What is read, and what becomes of a record that cannot be used."""

    dataset: Annotated[str, EXECUTION]
    """Where the records are."""
    config: str | None = None
    """Configuration of a hub dataset that has several."""
    split: str | None = None
    """Split of a hub dataset; `train` without one."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Rows to keep at most, from the front."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a record that cannot be used (not JSON, another encoding, binary, no such field): stop and name
    it, or count and report it. A file that is gone always stops."""


@dataclass
class BadRows:
    """Records that could not be used: the first one stops the stage, or all are counted with `skip`."""

    skip: bool
    count: int = 0
    shown: list[str] = field(default_factory=list)
    """The first ones: file, place and what is wrong."""

    def note(self, where: Path | str, place: str, fault: str, fix: str) -> None:
        """Count a bad row, or raise UserError for it."""
        if not self.skip:
            raise UserError(
                f"{where}{place} {fault}",
                fix=fix or "mend the record, or set on_bad_row: skip to count such records and go on",
            )
        self.count += 1
        if len(self.shown) < SHOWN_FAULTS:
            name = where.name if isinstance(where, Path) else where
            self.shown.append(f"{name}{place} {fault}".replace(f"{where}", name))


class ReadsOrigin(Stage):
    """A stage whose parameter `dataset` names an `Origin`."""

    generated: ClassVar[str]
    """What to write for something made up."""
    params: OriginParameters

    def origin(self) -> Origin:
        """What is read, as it is now."""
        return Origin.of(self.params.dataset, self.generated)

    def sources(self) -> Mapping[str, Source]:
        """Every file that will be read, or the hub reference as written."""
        return self.origin().sources()

    def preflight(self) -> None:
        """Check that the files are there, and that hub parameters come with a hub dataset."""
        if not isinstance(self.origin().found, HubReference):
            for name in ("config", "split"):
                if getattr(self.params, name) is not None:
                    raise UserError(
                        f"{name}: {getattr(self.params, name)!r} is for hub datasets, {self.params.dataset!r} is none",
                        fix=f"remove {name}, and name the files to read in dataset",
                    )
