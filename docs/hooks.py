"""What the site adds to these pages: one for each method, written from its code, and equations that need no script."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from pipelines.cli.reference import GROUPS, describe_method
from pipelines.planning.reasons import as_written
from stages import registry

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

METHOD = re.compile(r"<(?:a|pre) .*?</(?:a|pre)>|<code>(?P<method>[\w.]+)</code>", re.DOTALL)
"""What is a link already, or a listing, is passed over."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `reference.md` and a page for each method."""
    files.append(File.generated(config, "reference.md", content=index()))
    for name in registry.METHODS:
        files.append(File.generated(config, f"reference/{name}.md", content=method_page(name)))
    return files


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Equations as MathML, which browsers draw themselves; names of methods as links to what the code says of them."""

    def linked(found: re.Match[str]) -> str:
        name = found["method"]
        if name not in registry.METHODS or page.url == f"reference/{name}/":
            return found[0]
        return f'<a href="{get_relative_url(f"reference/{name}/", page.url)}">{found[0]}</a>'

    return METHOD.sub(linked, EQUATION.sub(_equation, content))


def _equation(found: re.Match[str]) -> str:
    kind, latex = found.groups()
    return convert(html.unescape(latex).strip(), display="block" if kind == "div" else "inline")


def index() -> str:
    """All methods in one table."""
    rows = (
        f"| [`{name}`](reference/{name}.md) | {describe_method(registry.find(name))['summary'].splitlines()[0]} |"
        for name in registry.METHODS
    )
    return "\n".join(["# All methods", "", "| method | what it does |", "|---|---|", *rows, ""])


def method_page(name: str) -> str:
    """What the code says of one method."""
    about = describe_method(registry.find(name))
    paper = f"Source: [arXiv:{about['paper']}](https://arxiv.org/abs/{about['paper']})" if about["paper"] else ""
    ports = [_ports(title, about[title]) for title in ("inputs", "outputs")]
    metrics = ", ".join(f"`{metric}`" for metric in about["metrics"])
    figures = f"## Metrics\n\nTo gate on with `expect`: {metrics}." if metrics else ""
    workers = f"Workers (`resources.workers`): {about['workers']}."
    tables = [_table(group, meaning, about["parameters"]) for group, meaning in GROUPS.items()]
    parts = [f"# `{name}`", about["summary"], paper, *ports, figures, workers, *tables]
    return "\n\n".join(part for part in parts if part) + "\n"


def _ports(title: str, ports: Mapping[str, str]) -> str:
    return "\n".join([f"## {title.capitalize()}", "", *(f"- `{name}`: {what}" for name, what in ports.items())])


def _table(group: str, meaning: str, parameters: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [_row(name, one) for name, one in parameters.items() if one["identity"] == group]
    head = [f"## Parameters, {group}", "", f"{meaning.capitalize()}.", "", "| name | type | default | meaning |"]
    return "\n".join([*head, "|---|---|---|---|", *rows]) if rows else ""


def _row(name: str, parameter: Mapping[str, Any]) -> str:
    default = "" if parameter["default"] == "required" else f"`{as_written(parameter['default'])}`"
    cells = (f"`{name}`", parameter["type"], default, parameter["description"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
