"""Names that people give to runs and artifacts: `tags/<name>.json` in the store. `gc` keeps what has one."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Final, Literal

from pipelines.housekeeping.files import StoreFiles
from pipelines.spec.problems import nearest
from stages.errors import UserError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Tag:
    """A name, and what it stands for: a run, or one output of a result."""

    name: str
    kind: Literal["run", "artifact"]
    run: str
    """The run, or the one that made the artifact."""
    stage: str = ""
    method: str = ""
    key: str = ""
    output: str = ""
    time: float = 0.0
    """When it was given, in seconds since the epoch."""

    @property
    def target(self) -> str:
        """What it stands for, as one would name it."""
        return self.run if self.kind == "run" else f"{self.run}:{self.stage}.{self.output}"


def read_tags(files: StoreFiles) -> dict[str, Tag]:
    """Every tag by name. Raises UserError for one that cannot be read: `gc` would remove what it protects."""
    return {
        tag.name: tag for name, data in files.read_all(files.glob("tags/*.json")).items() for tag in [_tag(name, data)]
    }


def run_tags(files: StoreFiles) -> dict[str, str]:
    """The run that each tag of a run stands for."""
    return {tag.name: tag.run for tag in read_tags(files).values() if tag.kind == "run"}


def write_tag(files: StoreFiles, tag: Tag) -> Tag | None:
    """Give a tag; returns the one of this name that it takes the place of. Raises UserError for a bad name."""
    if not NAME.fullmatch(tag.name):
        fix = "use up to 64 letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
        raise UserError(f"{tag.name!r} cannot be a tag", fix=fix)
    before = read_tags(files).get(tag.name)
    content = {**asdict(tag), "time": round(time.time(), 3)}
    files.write(f"tags/{tag.name}.json", (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return before


def remove_tag(files: StoreFiles, name: str) -> Tag:
    """Take a tag away. Raises UserError when there is none of this name."""
    tags = read_tags(files)
    if name not in tags:
        raise UserError(f"no tag {name!r}", fix=nearest(name, tags))
    files.remove(f"tags/{name}.json")
    return tags[name]


def _tag(name: str, data: bytes) -> Tag:
    try:
        return Tag(**json.loads(data))
    except (ValueError, TypeError) as error:
        fix = "remove the file if the tag is not needed"
        raise UserError(f"this tag cannot be read: {error}", where=name, fix=fix) from None
