"""The code fingerprint: which of the project's own definitions a method reaches, and what they say.

Starting from the stage's class, names are followed through functions, classes, constants and imports, also those inside
functions, as far as the project's own modules go (this project's packages, the package of a user's stage, and modules
outside the installed libraries). Each definition reached is digested after docstrings, comments, formatting and the
type hints of functions are gone, so that only an edit that can change a result changes the fingerprint. What cannot be
followed name by name (a module passed around, a star import) counts as a whole.

Installed libraries are evidence, not identity: their versions are recorded with each artifact.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from pipelines.planning.modules import WHOLE, Definition, Module, ModuleCache, Named

PROJECT: Final = frozenset({"stages", "grafts", "clusters", "pipelines"})
EFFECTS: Final = "(module)"
_ROOT: Final = Path(__file__).resolve().parents[2]
_LIBRARIES: Final = tuple(str(Path(path).resolve()) for path in sys.path if path.endswith(("-packages", "lib-dynload")))
_STANDARD: Final = str(Path(ast.__file__).resolve().parent)


class _Sources:
    """The modules read so far in this process, and what is remembered of them between processes."""

    def __init__(self) -> None:
        self.remembered = ModuleCache()
        self.read: dict[tuple[str, bool], Module | None] = {}

    def module(self, name: str, own: bool) -> Module | None:
        """The module, or None where it is not the project's own."""
        if (name, own) not in self.read:
            file = _find(name, own)
            self.read[name, own] = self.remembered.read(name, file) if file else None
        return self.read[name, own]


_sources = _Sources()


def fingerprint(target: str) -> dict[str, str]:
    """Digest (16 hex digits) of every definition that `module:Class` reaches, by `module:name`."""
    module, _, name = target.partition(":")
    walk = _Walk(own=PROJECT | {module.partition(".")[0]})
    walk.reach(module, name)
    return dict(sorted(walk.digests.items()))


def remember_in(file: Path) -> None:
    """Use, and with `save` fill, the cache of parsed sources in `file`."""
    if _sources.remembered.file != file:
        _sources.remembered = ModuleCache(file)


def save() -> None:
    """Write what was learnt of the sources since `remember_in`."""
    _sources.remembered.save()


def forget() -> None:
    """Forget the modules read so far in this process, so that edits since then are seen."""
    _sources.read.clear()
    _find.cache_clear()
    _locate.cache_clear()


def source_file(definition: str) -> str:
    """The file of `module:name` as people name it: `stages/quantize/rtn.py`."""
    name = definition.partition(":")[0]
    file = _find(name, True)
    is_package = file is not None and file.name == "__init__.py"
    return name.replace(".", "/") + ("/__init__.py" if is_package else ".py")


class _Walk:
    """Follows definitions from one to the next, each once."""

    def __init__(self, own: frozenset[str]) -> None:
        self.own = own
        self.seen: set[Named] = set()
        self.digests: dict[str, str] = {}

    def reach(self, module_name: str, name: str) -> None:
        pending: list[Named] = [(module_name, name)]
        while pending:
            definition = pending.pop()
            if definition not in self.seen:
                self.seen.add(definition)
                pending.extend(self._visit(*definition))

    def _visit(self, module_name: str, name: str) -> Iterator[Named]:
        module = self._module(module_name)
        if module is None:
            return
        if name != EFFECTS:
            yield module_name, EFFECTS
        yield from ((package, EFFECTS) for package in _packages(module_name))
        if name == WHOLE:
            yield from ((module_name, inner) for inner in (*module.definitions, *module.imports))
            return
        definition = module.effects if name == EFFECTS else module.definitions.get(name)
        if definition:
            self.digests[f"{module_name}:{name}"] = definition.digest
            yield from self._mentioned(module_name, definition)
        elif name in module.imports:
            yield from self._imported(*module.imports[name])
        elif name != EFFECTS and self._module(f"{module_name}.{name}"):
            yield f"{module_name}.{name}", WHOLE

    def _mentioned(self, module_name: str, definition: Definition) -> Iterator[Named]:
        """The definitions that names and dotted names in `definition` refer to."""
        yield from ((name, EFFECTS) for name in definition.runs)
        yield from ((module_name, name) for name in definition.local)
        for module, name, rest in definition.imported:
            yield from self._imported(module, name, rest)

    def _imported(self, module_name: str, name: str, rest: tuple[str, ...] = ()) -> Iterator[Named]:
        """What `from module_name import name` followed by the attributes `rest` refers to."""
        while name == WHOLE and rest and self._module(f"{module_name}.{rest[0]}"):
            module_name, rest = f"{module_name}.{rest[0]}", rest[1:]
        if name != WHOLE and self._module(f"{module_name}.{name}"):
            yield from self._imported(f"{module_name}.{name}", WHOLE, rest)
        elif name == WHOLE and rest:
            yield module_name, rest[0]
        else:
            yield module_name, name

    def _module(self, name: str) -> Module | None:
        return _sources.module(name, name.partition(".")[0] in self.own)


def _packages(module_name: str) -> Iterator[str]:
    """The packages that are imported before the module is."""
    while module_name := module_name.rpartition(".")[0]:
        yield module_name


@cache
def _find(name: str, own: bool) -> Path | None:
    """The source file of a module that counts as the project's own, without importing anything."""
    found = _locate(name)[0]
    file = Path(found) if found else None
    return file if file and (own or not _is_library(file)) else None


@cache
def _locate(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The file of a module, and the directories in which its submodules would be."""
    parent, _, last = name.rpartition(".")
    spaces = []
    for entry in _locate(parent)[1] if parent else (str(_ROOT), *sys.path):
        base = f"{entry or '.'}/{last}"
        if os.path.isfile(f"{base}/__init__.py"):  # noqa: PTH113  (asked some thousand times a plan)
            return f"{base}/__init__.py", (base,)
        if os.path.isfile(f"{base}.py"):  # noqa: PTH113
            return f"{base}.py", ()
        if os.path.isdir(base):  # noqa: PTH112
            spaces.append(base)
    return None, tuple(spaces)


def _is_library(file: Path) -> bool:
    text = str(file.resolve())
    return text.startswith((*_LIBRARIES, _STANDARD)) or "site-packages" in text
