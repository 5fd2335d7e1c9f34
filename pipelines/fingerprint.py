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
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

PROJECT: Final = frozenset({"stages", "grafts", "clusters", "pipelines"})
WHOLE: Final = "*"
EFFECTS: Final = "(module)"
_ROOT: Final = Path(__file__).resolve().parent.parent
_LIBRARIES: Final = tuple(str(Path(path).resolve()) for path in sys.path if path.endswith(("-packages", "lib-dynload")))
_STANDARD: Final = str(Path(ast.__file__).resolve().parent)

Definition = tuple[str, str]
"""A module and a name in it."""


def fingerprint(target: str) -> dict[str, str]:
    """Digest (16 hex digits) of every definition that `module:Class` reaches, by `module:name`."""
    module, _, name = target.partition(":")
    walk = _Walk(own=PROJECT | {module.partition(".")[0]})
    walk.reach(module, name)
    return dict(sorted(walk.digests.items()))


def forget() -> None:
    """Forget the modules read so far, so that edits since then are seen."""
    _read.cache_clear()
    _find.cache_clear()


@dataclass
class _Module:
    """One parsed module: what each top-level name is defined by, imported names, and the statements that just run."""

    name: str
    is_package: bool
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, Definition] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def digest(self, name: str, statements: list[ast.stmt]) -> str:
        if name not in self.digests:
            text = "\n".join(ast.dump(statement) for statement in statements)
            self.digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self.digests[name]


class _Walk:
    """Follows definitions from one to the next, each once."""

    def __init__(self, own: frozenset[str]) -> None:
        self.own = own
        self.seen: set[Definition] = set()
        self.digests: dict[str, str] = {}

    def reach(self, module_name: str, name: str) -> None:
        pending: list[Definition] = [(module_name, name)]
        while pending:
            definition = pending.pop()
            if definition not in self.seen:
                self.seen.add(definition)
                pending.extend(self._visit(*definition))

    def _visit(self, module_name: str, name: str) -> Iterator[Definition]:
        module = self._module(module_name)
        if module is None:
            return
        if name != EFFECTS:
            yield module_name, EFFECTS
            parent = module_name.rpartition(".")[0]
            if parent:
                yield parent, EFFECTS
        if name == WHOLE:
            yield from ((module_name, inner) for inner in (*module.definitions, *module.imports))
            return
        statements = module.effects if name == EFFECTS else module.definitions.get(name, [])
        if statements:
            self.digests[f"{module_name}:{name}"] = module.digest(name, statements)
            yield from self._mentioned(module, statements)
        elif name in module.imports:
            yield from self._imported(*module.imports[name])
        elif name != EFFECTS and self._module(f"{module_name}.{name}"):
            yield f"{module_name}.{name}", WHOLE

    def _mentioned(self, module: _Module, statements: list[ast.stmt]) -> Iterator[Definition]:
        """The definitions that names and dotted names in `statements` refer to."""
        local: dict[str, Definition] = {}
        for statement in statements:
            for node in ast.walk(statement):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    local.update(_imports(node, module))
                    yield from ((name, EFFECTS) for name in _modules_run(node, module))
        names = {**module.imports, **local}
        for chain in _chains(statements):
            head = chain[0]
            if head in names:
                yield from self._imported(*names[head], chain[1:])
            elif head in module.definitions:
                yield module.name, head

    def _imported(self, module_name: str, name: str, rest: tuple[str, ...] = ()) -> Iterator[Definition]:
        """What `from module_name import name` followed by the attributes `rest` refers to."""
        while name == WHOLE and rest and self._module(f"{module_name}.{rest[0]}"):
            module_name, rest = f"{module_name}.{rest[0]}", rest[1:]
        if name != WHOLE and self._module(f"{module_name}.{name}"):
            yield from self._imported(f"{module_name}.{name}", WHOLE, rest)
        elif name == WHOLE and rest:
            yield module_name, rest[0]
        else:
            yield module_name, name

    def _module(self, name: str) -> _Module | None:
        file = _find(name, name.partition(".")[0] in self.own)
        return _read(name, file) if file else None


@cache
def _find(name: str, own: bool) -> Path | None:
    """The source file of a module that counts as the project's own, without importing anything."""
    parts = name.split(".")
    for entry in (str(_ROOT), *sys.path):
        base = Path(entry or ".").joinpath(*parts)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file if own or not _is_library(file) else None
    return None


def _is_library(file: Path) -> bool:
    text = str(file.resolve())
    return text.startswith((*_LIBRARIES, _STANDARD)) or "site-packages" in text


@cache
def _read(name: str, file: Path) -> _Module:
    module = _Module(name, is_package=file.name == "__init__.py")
    tree = _Normalise().visit(ast.parse(file.read_bytes(), filename=str(file)))
    for statement in tree.body:
        _file_statement(statement, module)
    return module


def _file_statement(statement: ast.stmt, module: _Module) -> None:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        module.definitions.setdefault(statement.name, []).append(statement)
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        module.imports.update(_imports(statement, module))
        if not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            module.effects.extend(_bare(statement))
    elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        for name in names:
            module.definitions.setdefault(name, []).append(statement)
    elif not (isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)):
        module.effects.append(statement)


def _bare(statement: ast.Import | ast.ImportFrom) -> list[ast.stmt]:
    """An import for its effect alone (`import grafts  # noqa`) is something the module does."""
    return [statement] if isinstance(statement, ast.Import) else []


def _imports(node: ast.Import | ast.ImportFrom, module: _Module) -> dict[str, Definition]:
    """Local name → definition, for one import statement."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                (alias.name, WHOLE) if alias.asname else (alias.name.partition(".")[0], WHOLE)
            )
            for alias in node.names
        }
    source = _absolute(node, module)
    return {alias.asname or alias.name: (source, WHOLE if alias.name == "*" else alias.name) for alias in node.names}


def _modules_run(node: ast.Import | ast.ImportFrom, module: _Module) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [_absolute(node, module)]


def _absolute(node: ast.ImportFrom, module: _Module) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    keep = len(package) - node.level + (1 if module.is_package else 0)
    return ".".join([*package[:keep], *([node.module] if node.module else [])])


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
