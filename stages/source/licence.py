"""The licence a source declares of itself, in a GGUF header, a model card or a package's metadata; "" without one."""

from __future__ import annotations

import re
from pathlib import Path

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
    header = re.match(r"---\n(.*?)\n---", file.read_text(encoding="utf-8"), re.DOTALL)
    found = re.search(r"^licen[sc]e:\s*['\"]?([^'\"\n]+)", header.group(1), re.MULTILINE) if header else None
    return found.group(1).strip() if found else ""


def gguf_licence(file: Path) -> str:
    """`general.license` of a GGUF file, or ""."""
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("general.license")
    return str(field.contents()) if field else ""
