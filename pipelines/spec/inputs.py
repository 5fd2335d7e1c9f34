"""What a stage reads: references to other stages' outputs, checked against what the stage declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.spec.document import Path
from pipelines.spec.matrix import is_broken
from pipelines.spec.pipeline import Reference
from pipelines.spec.problems import Nearest
from stages.stage import Input, Output, Stage

Names = Mapping[str, list[str]]
"""The arms of each stage of the file, by the stage's name there."""
Classes = Mapping[str, type[Stage] | None]
Grow = Callable[[Path, list[str]], None]
"""Counts the arms that are read; raises SpecError when they are too many."""


def read_inputs(
    stage: type[Stage], path: Path, raw: Any, names: Names, classes: Classes, tell: Any, grow: Grow
) -> dict[str, tuple[Reference, ...]]:
    """The references behind each input. Notes unknown, missing and mistyped ones."""
    path = (*path, "inputs")
    if raw is not None and not isinstance(raw, dict):
        tell(path, "`inputs` maps each input's name to a stage or stage.output")
        return {}
    given = raw or {}
    inputs = {}
    for name, value in given.items():
        if name not in stage.inputs:
            tell((*path, name), f"unknown input {name!r}", Nearest(name, stage.inputs), key=True)
            continue
        inputs[name] = _references(stage.inputs[name], (*path, name), name, value, names, classes, tell, grow)
    for name, declared in stage.inputs.items():
        if name not in given and not declared.optional:
            tell(path, f"missing input {name!r}: a {describe(declared)}", f"write {name}: STAGE or STAGE.OUTPUT")
    return inputs


def describe(declared: Input | Output) -> str:
    """`dataset of tokens`, `model`, …"""
    return declared.kind.kind + (f" of {declared.schema}" if declared.schema else "")


def _references(
    declared: Input, path: Path, name: str, value: Any, names: Names, classes: Classes, tell: Any, grow: Grow
) -> tuple[Reference, ...]:
    found: list[Reference] = []
    for index, text in enumerate(value if isinstance(value, list) else [value]):
        at = (*path, index) if isinstance(value, list) else path
        arms, output = _one(declared, at, name, text, names, classes, tell)
        grow(at, arms)
        found.extend(Reference(arm, output) for arm in arms)
    if len(found) > 1 and not declared.many:
        arms = ", ".join(reference.stage for reference in found[:4])
        tell(path, f"input {name!r} takes one {describe(declared)}, found {len(found)}", f"name one of: {arms}")
    return tuple(found)


def _one(
    declared: Input, path: Path, name: str, text: Any, names: Names, classes: Classes, tell: Any
) -> tuple[list[str], str]:
    """The stages, and their output, that `text` names; none when something is wrong with it."""
    if not isinstance(text, str):
        tell(path, f"input {name!r} must name a stage or stage.output, found {text!r}")
        return [], ""
    base, output = _split(text, names)
    arms = names.get(base) or ([base] if base in classes else [])
    if not arms and is_broken(base, names):
        return [], ""
    if not arms:
        tell(path, f"unknown stage {base!r}", Nearest(base, names))
        return [], ""
    stage = classes.get(arms[0])
    if stage is None:
        return [], ""
    if not stage.outputs:
        tell(path, f"stage {base!r} makes nothing that could be read")
        return [], ""
    output = output or next(iter(stage.outputs))
    if output not in stage.outputs:
        tell(path, f"stage {base!r} has no output {output!r}", Nearest(output, stage.outputs))
        return [], ""
    made = stage.outputs[output]
    if made.kind is not declared.kind or (declared.schema and made.schema and made.schema != declared.schema):
        fitting = [f"{base}.{key}" for key, item in stage.outputs.items() if item.kind is declared.kind]
        hint = f"{base} also makes {', '.join(fitting)}" if fitting and made.kind is not declared.kind else ""
        tell(path, f"input {name!r} takes a {describe(declared)}, {base}.{output} is a {describe(made)}", hint)
        return [], ""
    return arms, output


def _split(text: str, names: Names) -> tuple[str, str]:
    """Stage and output of a reference; dots inside the brackets of a matrix arm belong to the name."""
    if text in names:
        return text, ""
    close = text.rfind("]")
    head, rest = text[: close + 1], text[close + 1 :]
    stage, _, output = rest.partition(".")
    return head + stage, output
