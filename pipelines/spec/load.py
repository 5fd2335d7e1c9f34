"""From a file to a `Pipeline`: every check, one small function each, all problems told together."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path as File
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from pipelines.spec.document import Document, Path
from pipelines.spec.document import Mapping as Located
from pipelines.spec.gate import Gate, parse_gate
from pipelines.spec.graph import order
from pipelines.spec.inputs import read_inputs
from pipelines.spec.overrides import STAGE_KEYS, apply
from pipelines.spec.pipeline import Pipeline, StageSpec
from pipelines.spec.problems import Nearest
from pipelines.spec.quantities import parse_bytes, parse_duration
from pipelines.spec.template import references, substitute, substitute_known
from stages import registry
from stages.documentation import document
from stages.errors import UserError
from stages.stage import Resources, Stage

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
PIPELINE_KEYS: Final = ("name", "description", "seed", "params", "stages")
MOST_ARMS: Final = 10_000
MOST_STAGES: Final = 50_000
LONGEST_ARM: Final = 200
MOST_GROWN: Final = 10_000_000
"""Values and characters in the bodies of all stages once matrices are spread out and references replaced: a small file
can ask for more than any memory holds."""


def load(file: File, overrides: tuple[str, ...] = ()) -> Pipeline:
    """Read, check and type the pipeline in `file`. Raises SpecError with every problem, or UserError."""
    return parse(Document.read(file), overrides)


def parse(document: Document, overrides: tuple[str, ...] = ()) -> Pipeline:
    """Check and type an already parsed document. Raises SpecError with every problem, or UserError."""
    apply(document, overrides)
    pipeline = _Reader(document).pipeline(overrides)
    document.raise_problems()
    assert pipeline is not None, "a file without problems makes a pipeline"
    return pipeline


class _Reader:
    """Reads one document; problems are noted in it."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.tell = document.problem
        self.params: Mapping[str, Any] = {}
        self.seed = 0
        self.room = MOST_GROWN
        self.found: dict[str, type[Stage] | UserError] = {}

    def pipeline(self, overrides: tuple[str, ...]) -> Pipeline | None:
        root = self.document.root
        if not isinstance(root, Located):
            self.tell((), f"a pipeline file is a mapping, found {_kind(root)}", f"keys: {', '.join(PIPELINE_KEYS)}")
            return None
        self._unknown_keys(root, (), PIPELINE_KEYS)
        name = self._name(root)
        description = self._typed(root, (), "description", str, "")
        self.seed = self._typed(root, (), "seed", int, 0)
        self.params = self._typed(root, (), "params", Located, Located())
        for key, value in self.params.items():
            if isinstance(value, dict):
                self.tell(("params", key), "a pipeline parameter is a scalar or a list, found a mapping")
            elif references(value, "params") | references(value, "matrix"):
                self.tell(("params", key), f"a pipeline parameter cannot refer to another, found {value!r}")
        stages = self._stages(root)
        if self.document.problems:
            return None
        text = "\n".join(self.document.lines)
        return Pipeline(name, description, self.document.file, self.seed, stages, dict(self.params), overrides, text)

    def _name(self, root: Located) -> str:
        name = root.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            self.tell(("name",), f"`name` must be {_NAME_RULE}, found {name!r}", "for example name: quickstart")
            return ""
        return name

    def _stages(self, root: Located) -> dict[str, StageSpec]:
        raw = root.get("stages")
        if not isinstance(raw, Located) or not raw:
            self.tell(("stages",), f"`stages` must be a mapping with at least one stage, found {_kind(raw)}")
            return {}
        arms: dict[str, list[tuple[str, Path, dict[str, Any]]]] = {}
        num_stages = 0
        for base, body in raw.items():
            path: Path = ("stages", base)
            if not NAME.fullmatch(base):
                self.tell(path, f"a stage's name must be {_NAME_RULE}, found {base!r}", key=True)
            if not isinstance(body, Located):
                self.tell(path, f"a stage is a mapping with `uses`, found {_kind(body)}")
                continue
            self._unknown_keys(body, path, STAGE_KEYS)
            arms[base] = self._expand(base, path, body)
            num_stages += len(arms[base])
            if num_stages > MOST_STAGES:
                self._stop(path, f"with its matrices, the pipeline has more than {MOST_STAGES:,} stages")
        return self._connect(arms)

    def _expand(self, base: str, path: Path, body: Located) -> list[tuple[str, Path, dict[str, Any]]]:
        """The arms of the stage's matrix (one, without a matrix): name, path, and body with references replaced."""
        matrix = self._typed(body, path, "matrix", Located, Located())
        rest = {key: value for key, value in body.items() if key != "matrix"}
        matrix_path = (*path, "matrix")
        for key, values in list(matrix.items()):
            if not isinstance(values, list) or not values:
                self.tell((*matrix_path, key), f"a matrix axis is a list of scalars, found {_kind(values)}")
                return []
        axes = {
            key: [substitute(value, (*matrix_path, key), {"params": self.params}, self.tell) for value in values]
            for key, values in matrix.items()
        }
        if not all(self._axis((*matrix_path, key), key, values) for key, values in axes.items()):
            return []
        count = 1
        for values in axes.values():
            count *= len(values)
        if count > MOST_ARMS:
            self.tell(matrix_path, f"the matrix has {count:,} arms; at most {MOST_ARMS:,} are allowed")
            return []
        named = references(rest, "matrix")
        return [
            self._arm(base, path, rest, dict(zip(axes, values, strict=True)), named)
            for values in itertools.product(*axes.values())
        ]

    def _axis(self, path: Path, key: str, values: list[Any]) -> bool:
        """Whether the values can be part of the names of stages."""
        if not key.isprintable():
            self.tell(path, f"the name of a matrix axis must be printable, found {key!r}", key=True)
            return False
        for index, value in enumerate(values):
            if isinstance(value, (dict, list)):
                self.tell((*path, index), f"a matrix axis is a list of scalars, found {_kind(value)} in it")
                return False
            if not str(value).isprintable() or len(str(value)) > LONGEST_ARM:
                rule = f"it must be printable and have at most {LONGEST_ARM} characters"
                self.tell((*path, index), f"a matrix value is part of the stage's name: {rule}, found {value!r}")
                return False
        return True

    def _arm(
        self, base: str, path: Path, body: dict[str, Any], values: dict[str, Any], named: set[str]
    ) -> tuple[str, Path, dict[str, Any]]:
        scopes = {"params": self.params, "matrix": values} if values else {"params": self.params}
        gates = body.get("expect")
        filled = substitute({key: value for key, value in body.items() if key != "expect"}, path, scopes, self.tell)
        if gates is not None:
            filled["expect"] = substitute_known(gates, (*path, "expect"), scopes, self.tell)
        direct = {key: value for key, value in values.items() if key not in named}
        if "seed" in direct and "seed" not in body:
            filled["seed"] = direct.pop("seed")
        if direct and isinstance(filled.get("with", {}), dict):
            filled["with"] = {**(filled.get("with") or {}), **direct}
        self._grow(path, filled)
        label = ",".join(f"{key}={value}" for key, value in values.items())
        return (f"{base}[{label}]" if values else base), path, filled

    def _connect(self, arms: dict[str, list[tuple[str, Path, dict[str, Any]]]]) -> dict[str, StageSpec]:
        classes = {base: self._class(path, body) for base, group in arms.items() for _, path, body in group[:1]}
        names = {base: [name for name, _, _ in group] for base, group in arms.items()}
        of = {name: classes.get(base) for base, group in names.items() for name in group}
        for name, count in Counter(itertools.chain.from_iterable(names.values())).items():
            if count > 1:
                self.tell(("stages", name.partition("[")[0], "matrix"), f"two arms of the matrix are the same: {name}")
        specs = {}
        for base, group in arms.items():
            for name, path, body in group:
                stage = classes[base]
                if stage is not None:
                    specs[name] = self._spec(name, stage_slug(name), stage, path, body, names, of)
        return order(specs, self.tell)

    def _class(self, path: Path, body: dict[str, Any]) -> type[Stage] | None:
        uses = body.get("uses")
        if not isinstance(uses, str):
            self.tell((*path, "uses"), "a stage needs `uses`: the method to run", Nearest("", registry.METHODS))
            return None
        if uses not in self.found:
            try:
                self.found[uses] = registry.find(uses)
            except UserError as error:
                self.found[uses] = error
        found = self.found[uses]
        if isinstance(found, UserError):
            self.tell((*path, "uses"), found.message, found.fix)
            return None
        return found

    def _spec(
        self,
        name: str,
        slug: str,
        stage: type[Stage],
        path: Path,
        body: dict[str, Any],
        names: Mapping[str, list[str]],
        of: Mapping[str, type[Stage] | None],
    ) -> StageSpec:
        timeout = body.get("timeout")
        return StageSpec(
            name=name,
            slug=slug,
            uses=body["uses"],
            stage=stage,
            params=self._params(stage, path, body),
            inputs=read_inputs(stage, path, body.get("inputs"), names, of, self.tell, self._grow),
            needs=self._needs(path, body, names, of),
            resources=self._resources(stage, path, body),
            retries=self._typed(body, path, "retries", int, 0, at_least=0),
            timeout_seconds=None if timeout is None else self._quantity((*path, "timeout"), timeout, parse_duration),
            max_parallel=self._typed(body, path, "max_parallel", int, None, at_least=1),
            expect=self._gates(stage, path, body, of),
            seed=self._typed(body, path, "seed", int, self.seed),
            path=path,
            place=f"{self.document.file}:{self.document.place(path, key=True).line}",
        )

    def _params(self, stage: type[Stage], path: Path, body: dict[str, Any]) -> Any:
        values = self._typed(body, path, "with", dict, {})
        try:
            return stage.Params.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            for found in error.errors(include_url=False, include_context=False):
                self._parameter_problem(stage, (*path, "with"), found)
            return None

    def _parameter_problem(self, stage: type[Stage], path: Path, found: Any) -> None:
        where, kind = tuple(found["loc"]), found["type"]
        name = ".".join(str(part) for part in where)
        if kind == "extra_forbidden":
            hint = Nearest(str(where[-1]), stage.Params.model_fields)
            self.tell((*path, *where), f"unknown parameter {name!r}", hint, key=True)
        elif kind == "missing":
            document()
            field = stage.Params.model_fields.get(str(where[0]))
            self.tell(path, f"missing parameter {name!r}", (field.description if field else "") or "")
        else:
            message = found["msg"].removeprefix("Value error, ")
            self.tell(
                (*path, *where), f"parameter {name!r}: {message[0].lower()}{message[1:]}, found {found['input']!r}"
            )

    def _needs(
        self, path: Path, body: dict[str, Any], names: Mapping[str, list[str]], of: Mapping[str, type[Stage] | None]
    ) -> tuple[str, ...]:
        value = body.get("needs") or []
        wanted = [value] if isinstance(value, str) else value
        if not isinstance(wanted, list):
            self.tell((*path, "needs"), f"`needs` is a stage or a list of stages, found {_kind(value)}")
            return ()
        found: list[str] = []
        for index, item in enumerate(wanted):
            if not isinstance(item, str):
                self.tell((*path, "needs"), f"`needs` is a stage or a list of stages, found {_kind(item)} in it")
            elif item in names:
                self._grow((*path, "needs"), names[item])
                found.extend(names[item])
            elif item in of:
                found.append(item)
            else:
                at = (*path, "needs") if isinstance(value, str) else (*path, "needs", index)
                self.tell(at, f"unknown stage {item!r} in needs", Nearest(str(item), names))
        return tuple(found)

    def _resources(self, stage: type[Stage], path: Path, body: dict[str, Any]) -> Resources:
        path = (*path, "resources")
        raw = self._typed(body, path[:-1], "resources", dict, {})
        self._unknown_keys(raw, path, ("workers", "cpus", "gpus", "memory"))
        memory = raw.get("memory", 0)
        resources = Resources(
            workers=self._typed(raw, path, "workers", int, 1, at_least=1),
            cpus=self._typed(raw, path, "cpus", (int, float), 1, at_least=0),
            gpus=self._typed(raw, path, "gpus", (int, float), 0, at_least=0),
            memory_bytes=int(self._quantity((*path, "memory"), memory, parse_bytes)),
        )
        if resources.workers > 1 and not stage.distributed:
            self.tell((*path, "workers"), f"{body['uses']} runs on one worker, found {resources.workers}")
        return resources

    def _gates(
        self, stage: type[Stage], path: Path, body: dict[str, Any], of: Mapping[str, type[Stage] | None]
    ) -> tuple[Gate, ...]:
        gates = []
        for metric, text in self._typed(body, path, "expect", dict, {}).items():
            at = (*path, "expect", metric)
            try:
                gate = parse_gate(metric, str(text))
            except ValueError as error:
                self.tell(at, str(error))
                continue
            self._known_metric(at, stage, metric, key=True)
            if gate.of is not None and gate.of[0] not in of:
                self.tell(at, f"unknown stage {gate.of[0]!r} in a gate", Nearest(gate.of[0], of))
            elif gate.of is not None:
                self._known_metric(at, of[gate.of[0]], gate.of[1])
            gates.append(gate)
        return tuple(gates)

    def _known_metric(self, path: Path, stage: type[Stage] | None, metric: str, *, key: bool = False) -> None:
        declared = stage.metrics if stage else ()
        if declared and not any(fnmatchcase(metric, pattern) for pattern in declared):
            self.tell(path, f"{stage.__name__} reports no metric {metric!r}", Nearest(metric, declared), key=key)

    def _quantity(self, path: Path, value: Any, parser: Any) -> float:
        try:
            return parser(value)
        except ValueError as error:
            self.tell(path, str(error))
            return 1

    def _typed(
        self, body: Mapping[str, Any], path: Path, key: str, kind: Any, default: Any, at_least: float | None = None
    ) -> Any:
        """`body[key]`, checked to be a `kind`; the default when it is not there or wrong."""
        value = body.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = {Located: "mapping", dict: "mapping", str: "text", int: "whole number"}.get(kind, "number")
            self.tell((*path, key), f"`{key}` must be a {expected}, found {_kind(value)}")
            return default
        if at_least is not None and value < at_least:
            self.tell((*path, key), f"`{key}` must be at least {at_least:g}, found {value:g}")
            return default
        return value

    def _grow(self, path: Path, value: Any) -> None:
        """Count what `value` adds to the pipeline. Raises SpecError when that is too much."""
        todo = [value]
        while todo and self.room > 0:
            item = todo.pop()
            self.room -= len(item) + 1 if isinstance(item, (str, list, dict)) else 1
            if isinstance(item, (list, dict)):
                todo.extend(item.values() if isinstance(item, dict) else item)
        if self.room <= 0:
            what = f"more than {MOST_GROWN:,} values and characters"
            self._stop(path, f"with its matrices and references, the pipeline grows to {what}")

    def _stop(self, path: Path, message: str) -> NoReturn:
        """Tell a problem after which nothing more is read."""
        self.tell(path, message, key=True)
        self.document.raise_problems()
        raise AssertionError("a problem was told")

    def _unknown_keys(self, body: Mapping[str, Any], path: Path, valid: tuple[str, ...]) -> None:
        for key in body:
            if key not in valid:
                self.tell((*path, key), f"unknown key {key!r}", Nearest(key, valid), key=True)


def stage_slug(name: str) -> str:
    """A stage's name made safe for file names: the same for an arm whatever other arms the matrix has."""
    base, bracket, label = name.partition("[")
    if not bracket:
        return base
    readable = re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")
    return f"{base[:36]}-{readable[:32]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


_NAME_RULE: Final = "letters, digits, `_` and `-`, starting with a letter, 64 characters at most"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {bool: "a boolean", str: "text", int: "a number", float: "a number"}
    kind = names.get(type(value), "a mapping" if isinstance(value, dict) else "a list")
    return f"{kind} ({value!r})" if isinstance(value, (str, int, float)) else kind
