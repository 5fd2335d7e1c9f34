"""From a file to a `Pipeline`: every check, one small function each, all problems told together."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path as File
from typing import Any, Final

from pipelines.spec.document import Document, Path
from pipelines.spec.document import Mapping as Located
from pipelines.spec.graph import order
from pipelines.spec.matrix import Arm, expand, stage_base
from pipelines.spec.node import Neighbours, read_node
from pipelines.spec.overrides import STAGE_KEYS, apply
from pipelines.spec.pipeline import Pipeline, StageSpec
from pipelines.spec.problems import Nearest
from pipelines.spec.reading import Reader, kind_of
from pipelines.spec.template import references
from stages import registry
from stages.errors import UserError
from stages.stage import Stage

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
NAME_RULE: Final = "letters, digits, `_` and `-`, starting with a letter, 64 characters at most"
PIPELINE_KEYS: Final = ("name", "description", "seed", "params", "stages")
MOST_STAGES: Final = 50_000


def load(file: File, overrides: tuple[str, ...] = ()) -> Pipeline:
    """Read, check and type the pipeline in `file`. Raises SpecError with every problem, or UserError."""
    return parse(Document.read(file), overrides)


def parse(document: Document, overrides: tuple[str, ...] = ()) -> Pipeline:
    """Check and type an already parsed document. Raises SpecError with every problem, or UserError."""
    apply(document, overrides)
    pipeline = _Loader(document).pipeline(overrides)
    document.raise_problems()
    assert pipeline is not None, "a file without problems makes a pipeline"
    return pipeline


class _Loader:
    """Makes a pipeline of one document; problems are noted in it."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.tell = document.problem
        self.reader = Reader(document)
        self.seed = 0
        self.found: dict[str, type[Stage] | UserError] = {}

    def pipeline(self, overrides: tuple[str, ...]) -> Pipeline | None:
        root = self.document.root
        if not isinstance(root, Located):
            self.tell((), f"a pipeline file is a mapping, found {kind_of(root)}", f"keys: {', '.join(PIPELINE_KEYS)}")
            return None
        self.reader.unknown_keys(root, (), PIPELINE_KEYS)
        name = self._name(root)
        description = self.reader.typed(root, (), "description", str, "")
        self.seed = self.reader.typed(root, (), "seed", int, 0)
        params = self.reader.params = self._params(root)
        stages = self._stages(root)
        if self.document.problems:
            return None
        text = "\n".join(self.document.lines)
        return Pipeline(name, description, self.document.file, self.seed, stages, dict(params), overrides, text=text)

    def _name(self, root: Located) -> str:
        name = root.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            self.tell(("name",), f"`name` must be {NAME_RULE}, found {name!r}", "for example name: quickstart")
            return ""
        return name

    def _params(self, root: Located) -> Located:
        params = self.reader.typed(root, (), "params", Located, Located())
        for key, value in params.items():
            if isinstance(value, dict):
                self.tell(("params", key), "a pipeline parameter is a scalar or a list, found a mapping")
            elif references(value, "params") | references(value, "matrix"):
                self.tell(("params", key), f"a pipeline parameter cannot refer to another, found {value!r}")
        return params

    def _stages(self, root: Located) -> dict[str, StageSpec]:
        raw = root.get("stages")
        if not isinstance(raw, Located) or not raw:
            self.tell(("stages",), f"`stages` must be a mapping with at least one stage, found {kind_of(raw)}")
            return {}
        arms: dict[str, list[Arm]] = {}
        num_stages = 0
        for base, body in raw.items():
            path: Path = ("stages", base)
            if not NAME.fullmatch(base):
                self.tell(path, f"a stage's name must be {NAME_RULE}, found {base!r}", key=True)
            if not isinstance(body, Located):
                self.tell(path, f"a stage is a mapping with `uses`, found {kind_of(body)}")
                arms[base] = []
                continue
            self.reader.unknown_keys(body, path, STAGE_KEYS)
            arms[base] = expand(self.reader, base, path, body)
            num_stages += len(arms[base])
            if num_stages > MOST_STAGES:
                self.reader.stop(path, f"with its matrices, the pipeline has more than {MOST_STAGES:,} stages")
        return self._connect(arms)

    def _connect(self, arms: dict[str, list[Arm]]) -> dict[str, StageSpec]:
        classes = {base: self._class(arm.path, arm.body) for base, group in arms.items() for arm in group[:1]}
        names = {base: [arm.name for arm in group] for base, group in arms.items()}
        self._tell_twins(names)
        others = Neighbours(names, {name: classes.get(base) for base, group in names.items() for name in group})
        specs = {
            arm.name: read_node(self.reader, stage, arm, others, self.seed)
            for base, group in arms.items()
            for arm in group
            if (stage := classes[base]) is not None
        }
        return order(specs, self.tell)

    def _tell_twins(self, names: dict[str, list[str]]) -> None:
        for name, count in Counter(itertools.chain.from_iterable(names.values())).items():
            if count > 1:
                self.tell(("stages", stage_base(name), "matrix"), f"two arms of the matrix are the same: {name}")

    def _class(self, path: Path, body: dict[str, Any]) -> type[Stage] | None:
        uses = body.get("uses")
        if not isinstance(uses, str):
            self.tell((*path, "uses"), "a stage needs `uses`: the method to run", Nearest("", registry.METHODS))
            return None
        found = self._find(uses)
        if isinstance(found, UserError):
            self.tell((*path, "uses"), found.message, found.fix)
            return None
        return found

    def _find(self, uses: str) -> type[Stage] | UserError:
        """The class of a method, looked for once, or why there is none."""
        if uses not in self.found:
            try:
                self.found[uses] = registry.find(uses)
            except UserError as error:
                self.found[uses] = error
        return self.found[uses]
