"""The docstrings under parameters, as the descriptions that `regraft methods`, editors and error messages show.

Pydantic can read them while a class is made, which costs a parse of every stage's source at every start; here they are
read when somebody wants to see them.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator

from stages.stage import Parameters

_documented: set[type[Parameters]] = set()


def document() -> None:
    """Give every parameter of the classes known so far its description."""
    for params in _family(Parameters):
        if params not in _documented:
            _documented.add(params)
            _describe(params)


def _family(params: type[Parameters]) -> Iterator[type[Parameters]]:
    """The subclasses, in an order in which each follows those it is made of."""
    for child in params.__subclasses__():
        yield child
        yield from _family(child)


def _describe(params: type[Parameters]) -> None:
    texts: dict[str, str] = {}
    for base in reversed(params.__mro__):
        if issubclass(base, Parameters) and base is not Parameters:
            texts |= dict(_docstrings(base))
    for name, field in params.model_fields.items():
        field.description = field.description or texts.get(name)
    params.model_rebuild(force=True)


def _docstrings(params: type[Parameters]) -> Iterator[tuple[str, str]]:
    """Each annotated name of the class with the string below it."""
    try:
        source = textwrap.dedent(inspect.getsource(params))
    except (OSError, TypeError):  # made without a source file, as in a notebook
        return
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for field, below in itertools.pairwise(body):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield field.target.id, inspect.cleandoc(str(below.value.value))
