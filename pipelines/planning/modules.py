"""The project's source files as the fingerprint needs them: what each top-level name says and what it mentions.

Parsing is most of what a plan of cached stages costs, so what was learnt of a file is kept in a cache beside the store
and used again while the file's stamp is the same: size, modification and change time, inode, and Python's version. The
change time catches an edit whose modification time was set back. A file that was touched within the last moments is
never remembered, because a further edit could leave it the same stamp.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stages.errors import UserError

WHOLE: Final = "*"
VERSION: Final = f"2 {sys.version}"
"""Of the cache: what is remembered by another Python, or in another form, counts for nothing."""
SETTLED_NS: Final = 3_000_000_000
"""Age from which the time stamps of a file tell every further edit, also where clocks tick every two seconds."""
MOST_FILES: Final = 4_000
"""Above this many remembered files, those not used now are dropped."""

Named = tuple[str, str]
"""A module and a name in it."""


@dataclass(frozen=True)
class Definition:
    """What a name is defined by (or what a module does when imported)."""

    digest: str
    """16 hex digits, of the normalised statements."""
    local: tuple[str, ...] = ()
    """Names of the same module that it mentions."""
    imported: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """What it mentions of other modules: module, name, and the attributes taken from that."""
    runs: tuple[str, ...] = ()
    """Modules that it imports when it runs."""


@dataclass
class Module:
    """One source file."""

    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, Named] = field(default_factory=dict)
    effects: Definition | None = None
    """The statements that just run, if there are any."""


class ModuleCache:
    """Modules by name and file; without a file of its own it remembers nothing."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.known: dict[str, Any] = {}
        self.used: set[str] = set()
        self.changed = False
        try:
            content = json.loads(file.read_bytes()) if file else {}
            self.known = content["modules"] if content["version"] == VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            self.known = {}  # a cache that is missing or damaged is made again

    def read(self, name: str, file: Path) -> Module:
        """The module called `name` in `file`. Raises UserError when it is not Python."""
        label, status = f"{name} {file}", os.stat(file)  # noqa: PTH116  (half the cost of Path.stat)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        self.used.add(label)
        if (remembered := self._remembered(label, stamp)) is not None:
            return remembered
        module = parse(name, file)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS:
            self.known[label] = {"stamp": stamp, "module": _to_json(module)}
            self.changed = True
        return module

    def save(self) -> None:
        """Write what was learnt, if anything was."""
        if self.changed and self.file:
            from pipelines.store.contents import write_cache

            if len(self.known) > MOST_FILES:
                self.known = {label: entry for label, entry in self.known.items() if label in self.used}
            content = json.dumps({"version": VERSION, "modules": self.known}, separators=(",", ":"))
            write_cache(self.file, content.encode())
            self.changed = False

    def _remembered(self, label: str, stamp: list[int]) -> Module | None:
        entry = self.known.get(label)
        try:
            return _from_json(entry["module"]) if entry and entry["stamp"] == stamp else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def parse(name: str, file: Path) -> Module:
    """Read the source `file` of the module `name`. Raises UserError when it is not Python."""
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise UserError(f"not Python: {error}", where=f"{file}:{line}" if line else str(file)) from None
    return _Reader(name, is_package=file.name == "__init__.py").module(_Normalise().visit(tree))


def _to_json(module: Module) -> list[Any]:
    effects = _flat(module.effects) if module.effects else None
    return [{name: _flat(item) for name, item in module.definitions.items()}, module.imports, effects]


def _flat(item: Definition) -> list[Any]:
    return [item.digest, item.local, item.imported, item.runs]


def _from_json(content: list[Any]) -> Module:
    definitions, imports, effects = content
    return Module(
        {name: _definition(item) for name, item in definitions.items()},
        {name: (module, inner) for name, (module, inner) in imports.items()},
        _definition(effects) if effects else None,
    )


def _definition(content: list[Any]) -> Definition:
    digest, local, imported, runs = content
    return Definition(digest, tuple(local), tuple((a, b, tuple(rest)) for a, b, rest in imported), tuple(runs))


class _Reader:
    """Sorts the statements of one module, then says what each name mentions."""

    def __init__(self, name: str, *, is_package: bool) -> None:
        self.name, self.is_package = name, is_package
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, Named] = {}
        self.effects: list[ast.stmt] = []

    def module(self, tree: ast.Module) -> Module:
        own = set(_bound(tree.body))
        for statement in tree.body:
            self._file(statement, own)
        definitions = {name: self._describe(statements) for name, statements in self.definitions.items()}
        return Module(definitions, self.imports, self._describe(self.effects) if self.effects else None)

    def _file(self, statement: ast.stmt, own: set[str]) -> None:
        """Put a statement with the names it defines, or with what the module does; `own` are the names it binds."""
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.definitions.setdefault(statement.name, []).append(statement)
        elif isinstance(statement, ast.ImportFrom):
            self.imports.update(self._names(statement))
        elif isinstance(statement, ast.Import):
            self.imports.update(self._names(statement))
            # An import for its effect alone, as that of `grafts`, is something the module does.
            self.effects.append(statement)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = list(_targets(statement))
            # `torch.nn.Linear = Mine` defines nothing here: it changes what others see, as a call would.
            if not {_root(target) for target in targets} <= own - set(self.imports):
                self.effects.append(statement)
                return
            for name in (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)):
                self.definitions.setdefault(name, []).append(statement)
        elif not (isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)):
            self.effects.append(statement)

    def _describe(self, statements: list[ast.stmt]) -> Definition:
        inner: dict[str, Named] = {}
        runs: set[str] = set()
        for statement in statements:
            for node in ast.walk(statement):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    inner.update(self._names(node))
                    runs.update(self._modules(node))
        names, chains = {**self.imports, **inner}, _chains(statements)
        imported = {(*names[chain[0]], chain[1:]) for chain in chains if chain[0] in names}
        local = {chain[0] for chain in chains if chain[0] not in names and chain[0] in self.definitions}
        text = "\n".join(ast.dump(statement) for statement in statements)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Definition(digest, tuple(sorted(local)), tuple(sorted(imported)), tuple(sorted(runs)))

    def _names(self, node: ast.Import | ast.ImportFrom) -> dict[str, Named]:
        """Local name → definition, for one import statement."""
        if isinstance(node, ast.Import):
            heads = ((alias, alias.name.partition(".")[0]) for alias in node.names)
            return {alias.asname or head: (alias.name if alias.asname else head, WHOLE) for alias, head in heads}
        source = self._absolute(node)
        return {alias.asname or alias.name: (source, alias.name) for alias in node.names}

    def _modules(self, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield self._absolute(node)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")
        keep = len(package) - node.level + (1 if self.is_package else 0)
        return ".".join([*package[:keep], *([node.module] if node.module else [])])


def _bound(statements: list[ast.stmt]) -> Iterator[str]:
    """The names that these statements themselves define."""
    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            yield from (target.id for target in _targets(statement) if isinstance(target, ast.Name))


def _targets(statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> Iterator[ast.expr]:
    """What is assigned to, one by one."""
    pending = list(statement.targets) if isinstance(statement, ast.Assign) else [statement.target]
    while pending:
        target = pending.pop()
        if isinstance(target, (ast.Tuple, ast.List)):
            pending.extend(target.elts)
        else:
            yield target.value if isinstance(target, ast.Starred) else target


def _root(target: ast.expr) -> str:
    """The name whose value is changed: `a` in `a.b[c]`; "" where it is not a name."""
    while isinstance(target, (ast.Attribute, ast.Subscript)):
        target = target.value
    return target.id if isinstance(target, ast.Name) else ""


def _chains(statements: list[ast.stmt]) -> set[tuple[str, ...]]:
    """Every name used, with the attributes taken from it: `torch.nn.Linear` is ("torch", "nn", "Linear")."""
    chains: set[tuple[str, ...]] = set()
    pending: list[ast.AST] = list(statements)
    while pending:
        node = pending.pop()
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            chains.add((node.id, *reversed(attributes)))
        else:
            pending.extend(ast.iter_child_nodes(node))
    return chains


class _Normalise(ast.NodeTransformer):
    """Removes what cannot change a result: docstrings and other bare strings, and the type hints of functions."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | None:
        bare = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if bare else self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.stmt:
        return self._function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:
        self._inside(node)
        node.body = node.body or [ast.Pass()]
        return node

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
        self._inside(node)
        node.returns = None
        arguments = node.args
        for argument in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ):
            if argument is not None:
                argument.annotation = None
        node.body = node.body or [ast.Pass()]
        return node

    def _inside(self, node: ast.stmt) -> ast.stmt:
        visited = self.generic_visit(node)
        assert isinstance(visited, ast.stmt)
        return visited
