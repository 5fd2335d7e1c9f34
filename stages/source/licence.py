"""The licence a source declares of itself, in a GGUF header, a model card or a package's metadata; "" without one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.source.locate import package_licence


def model_licence(reference: str, path: Path) -> str:
    """Licence of the model at `path`, found through `reference`: what lies nearest to the weights speaks first."""
    declared = gguf_licence(path) if path.suffix == ".gguf" else card_licence(path)
    return declared or reference_licence(reference)


def reference_licence(reference: str) -> str:
    """Licence of the package that `reference` names, or "" for anything but a package."""
    name = reference.removeprefix("package:").partition("/")[0]
    return package_licence(name) if reference.startswith("package:") else ""


def card_licence(folder: Path) -> str:
    """The `license` field of the card in `folder`/README.md, or ""."""
    file = folder / "README.md"
    if not file.is_file():
        return ""
    header = re.match(r"---\n(.*?)\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        fields = yaml.safe_load(header.group(1)) if header else None
    except yaml.YAMLError:
        return ""
    return declared_licence(fields) if isinstance(fields, dict) else ""


def declared_licence(fields: Mapping[str, Any]) -> str:
    """The licence in the fields of a card, several as one text; "" without one."""
    declared = fields.get("license") or fields.get("licence") or ""
    return ", ".join(map(str, declared)) if isinstance(declared, list) else str(declared)


def gguf_licence(file: Path) -> str:
    """`general.license` of a GGUF file, or ""."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("general.license")
    return str(field.contents()) if field else ""
