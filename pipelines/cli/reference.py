"""`regraft methods`: the documentation that lives in the stage classes."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Final

from pydantic.fields import FieldInfo
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from pipelines.cli.console import new_console
from pipelines.cli.options import print_json
from pipelines.cli.tables import grid
from pipelines.planning.reasons import as_written
from pipelines.spec.inputs import describe
from stages import registry
from stages.documentation import document
from stages.stage import Input, Stage


def show_methods(name: str | None, *, as_json: bool) -> None:
    """Print all methods, or one."""
    if as_json:
        chosen = [name] if name else list(registry.METHODS)
        print_json({method: describe_method(registry.find(method)) for method in chosen})
    elif name is None:
        _list()
    else:
        _document(name, registry.find(name))


def describe_method(stage: type[Stage]) -> dict[str, Any]:
    """A method as plain values."""
    document()
    return {
        "summary": inspect.getdoc(stage) or "",
        "paper": stage.paper,
        "inputs": {name: _input(item) for name, item in stage.inputs.items()},
        "outputs": {name: describe(item) for name, item in stage.outputs.items()},
        "metrics": list(stage.metrics),
        "workers": "several" if stage.distributed else "one",
        "parameters": {
            name: {
                "type": type_name(field),
                "default": "required" if field.is_required() else _plain(field),
                "identity": stage.Params.identity_class(name),
                "description": " ".join((field.description or "").split()),
            }
            for name, field in stage.Params.model_fields.items()
        },
    }


def type_name(field: FieldInfo) -> str:
    """A parameter's type with its bounds, as people write it."""
    bounds = [f"{_SIGNS[key]} {value}" for item in field.metadata for key, value in _bounds(item).items()]
    return " ".join([_annotation(field.annotation), *bounds])


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _bounds(item: Any) -> Mapping[str, Any]:
    return {key: getattr(item, key) for key in _SIGNS if getattr(item, key, None) is not None}


def _annotation(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotation(arguments[0])
    if origin is typing.Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " | ".join("none" if item is type(None) else _annotation(item) for item in arguments)
    if origin is not None:
        inner = ", ".join("…" if item is Ellipsis else _annotation(item) for item in arguments)
        return f"{origin.__name__}[{inner}]"
    return {"str": "text", "int": "int", "float": "float", "bool": "bool"}.get(annotation.__name__, annotation.__name__)


def _plain(field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    return list(default) if isinstance(default, tuple) else default


def _input(item: Input) -> str:
    notes = [note for note, holds in (("optional", item.optional), ("one or more", item.many)) if holds]
    return describe(item) + (f" ({', '.join(notes)})" if notes else "")


def _list() -> None:
    table = grid("method", "what it does")
    for method in registry.METHODS:
        table.add_row(method, (inspect.getdoc(registry.find(method)) or "").split("\n")[0])
    console = new_console()
    console.print(table)
    console.print("\nregraft methods METHOD documents one", markup=False)


def _document(name: str, stage: type[Stage]) -> None:
    about = describe_method(stage)
    console = new_console()
    console.print(Text(name, "bold"))
    for paragraph in about["summary"].split("\n\n"):
        console.print(Text(" ".join(paragraph.split()) + "\n"))
    if about["paper"]:
        print(f"paper: arXiv:{about['paper']}\n")
    for title in ("inputs", "outputs"):
        console.print(Text(title, "dim"))
        for key, text in about[title].items():
            print(f"  {key}: {text}")
        print()
    if about["metrics"]:
        console.print(Text("metrics, to gate on with expect", "dim"))
        console.print(Padding(Text(", ".join(about["metrics"])), (0, 0, 1, 2)))
    console.print(Text(f"workers: {about['workers']}\n", "dim"))
    for group, meaning in GROUPS.items():
        found = {key: item for key, item in about["parameters"].items() if item["identity"] == group}
        if found:
            console.print(Text(f"parameters, {group}: {meaning}", "dim"))
        for key, parameter in found.items():
            _print_parameter(console, key, parameter)


GROUPS: Final = {
    "identity": "they decide the result, and a change makes it anew",
    "execution": "how the work is done; a change reruns nothing (files that it names count by their content)",
    "cosmetic": "what people see; a change reruns nothing",
}


def _print_parameter(console: Console, name: str, parameter: Mapping[str, Any]) -> None:
    default = parameter["default"]
    value = "required" if default == "required" else f"= {as_written(default)}"
    console.print(Text(f"  {name}", "cyan") + Text(f"  {parameter['type']}  {value}", "default"))
    console.print(Padding(Text(parameter["description"], "dim"), (0, 0, 0, 6)))
