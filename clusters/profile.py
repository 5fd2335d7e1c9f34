"""Cluster profiles: where runs go, as small YAML files beside this module or anywhere else.

Reading one connects to nothing. What it says of the nodes lets a plan be refused that no node could ever run.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from clusters.executor import Capacity

SHIPPED: Final = Path(__file__).parent
MOST_PROBLEMS: Final = 20
MOST_CHARACTERS: Final = 300
ADDRESS: Final = r"^(local|auto|ray://.+|(\[[\da-fA-F:.]+\]|[\w.\-]+):\d+)$"


class ProfileError(ValueError):
    """A profile that cannot be used; the message says which, where and why."""


def _variable(name: object) -> object:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError("expected only the name of a variable, such as HF_TOKEN: its value is read where you submit")
    return name


class Profile(BaseModel):
    """One cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    description: str = ""
    """What this cluster is, for people."""
    address: Annotated[str, Field(pattern=ADDRESS)] = "local"
    """`local` starts Ray on this machine for the run; `auto` joins the one already here; else `ray://HOST:PORT`."""
    dashboard: Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")] = "http://127.0.0.1:8265"
    """Where `regraft submit` reaches the cluster: the address of Ray's dashboard, which takes the jobs."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """The most machines the cluster can have; used only with `cpus`, `gpus` or `memory`."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """CPU cores of each node; for a local Ray the cores it may use, all by default."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of each node; for a local Ray those it may use, all by default."""
    memory: ByteSize | None = None
    """Memory of each node that stages can ask for, such as 64GiB."""
    shared_disk: bool = False
    """Whether this machine and every node see the same files at the same paths, so that the store may be a path."""
    regraft_installed: bool = False
    """Whether the nodes have this version of regraft: then it is not sent along."""
    env: tuple[Annotated[str, BeforeValidator(_variable)], ...] = ()
    """Names of the variables to hand on from where you submit, such as HF_TOKEN; no other leaves this machine."""

    @model_validator(mode="after")
    def _one_local_node(self) -> Self:
        if self.address == "local" and self.nodes > 1:
            raise ValueError("a local Ray is one node; set `address` to that of the cluster, or remove `nodes`")
        return self

    def declared(self) -> Capacity:
        """What the profile says the cluster can give; infinite where it does not say."""
        unknown = float("inf")
        cpus, gpus, memory = (unknown if x is None else float(x) for x in (self.cpus, self.gpus, self.memory))
        return Capacity(cpus, gpus, memory, cpus * self.nodes, gpus * self.nodes if gpus else 0.0)

    def widest(self, now: Capacity) -> Capacity:
        """What the cluster can ever give, when it can give `now`: an autoscaler starts the nodes that are declared."""
        if self.address == "local":
            return now
        declared = {name: value for name, value in vars(self.declared()).items() if name != "nodes"}
        declared = {name: value for name, value in declared.items() if math.isfinite(value)}
        wider = {name: max(value, getattr(now, name)) for name, value in declared.items()}
        return replace(now, **wider, nodes=()) if declared else now


def load_profile(name: str) -> Profile:
    """The profile called `name`, or in the file `name`. Raises ProfileError."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(shipped())
        raise ProfileError(f"no cluster profile {name!r}; shipped: {known}; or give a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{file}: cannot be read: {error}") from None
    profile = _parse(file, text)
    address = os.environ.get("RAY_ADDRESS")
    if not address or profile.address != "local":
        return profile
    if not re.fullmatch(ADDRESS, address):
        raise ProfileError(
            f"the variable RAY_ADDRESS is {_shown(address)}, expected auto, local, HOST:PORT or ray://HOST:PORT; "
            "set it to one of these, or unset it"
        )
    return profile.model_copy(update={"address": address})


def shipped() -> list[str]:
    """Names of the profiles that come with regraft."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _parse(file: Path, text: str) -> Profile:
    try:
        content = yaml.safe_load(text) or {}
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    # The reader of YAML raises ValueError for dates that are none, and recurses as deep as the file does.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ProfileError(f"{file}:{_yaml_line(error)}: not YAML: {_short(str(error))}") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{file}:1: expected `name: value` lines, found {type(content).__name__}")
    try:
        return Profile.model_validate(
            {name if isinstance(name, str) else _shown(name): value for name, value in content.items()}
        )
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise ProfileError("\n".join(_told(file, top, problem) for problem in problems[:MOST_PROBLEMS])) from None


def _told(file: Path, top: yaml.Node | None, problem: Any) -> str:
    names = [_short(str(part)) for part in problem["loc"]]
    where = f"{file}:{_line(top, str(problem['loc'][0]) if names else '')}"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[0], Profile.model_fields, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(Profile.model_fields)}"
        return f"{where}: unknown key `{names[0]}`; {hint}"
    told = f"{where}: {'.'.join(names)}: " if names else f"{where}: "
    told += problem["msg"].removeprefix("Value error, ")
    return f"{told}, found {_shown(problem['input'])}" if names else told


def _shown(value: object) -> str:
    """A value as it would be written, cut short."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to write a number of thousands of digits
        return f"a {type(value).__name__} too long to be shown"


def _short(text: str) -> str:
    """`text` on one line of printable characters."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)[:MOST_CHARACTERS]


def _yaml_line(error: Exception) -> int:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark is not None else 1


def _line(top: yaml.Node | None, key: str) -> int:
    """The line of a top-level key, from 1."""
    pairs = top.value if isinstance(top, yaml.MappingNode) else []
    return next((name.start_mark.line + 1 for name, _ in pairs if name.value == key), 1)
