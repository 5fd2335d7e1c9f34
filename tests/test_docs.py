"""The documentation's pipelines and code are real: they are read, planned and run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.spec.document import Document
from pipelines.spec.load import parse
from stages.registry import METHODS, find
from tests.engine.conftest import bench  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

MADE_WITH_THE_SITE = "reference.md"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_reference_pipeline_is_right():
    pipeline = parse(Document("docs", blocks("docs/pipelines.md", "yaml")[0]))
    assert pipeline.stages["int4[group_size=32]"].params.group_size == 32


@pytest.mark.parametrize("page", ["README.md", "docs/first.md"])
def test_the_pipelines_for_newcomers_are_right(page):
    assert parse(Document(page, blocks(page, "yaml")[0])).stages


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    for name in METHODS:
        page = (tmp_path / "reference" / name / "index.html").read_text()
        for parameter in find(name).Params.model_fields:
            assert f"<code>{parameter}</code>" in page
    assert (tmp_path / "methods/glowq/index.html").exists()


def test_the_own_stage_of_the_docs_runs(bench, monkeypatch):  # noqa: F811
    (bench.directory / "my_stages.py").write_text(blocks("docs/stages.md", "python")[0])
    (bench.directory / "text.jsonl").write_text('{"text": "one"}\n{"text": "three"}\n{"text": "a"}\n')
    monkeypatch.syspath_prepend(str(bench.directory))
    text = blocks("docs/stages.md", "yaml")[0]
    result = bench.run(text, "count.least=3")
    assert result.ok, result.failures
    assert result.manifests["count"].metrics == {"documents": 2}
    assert not bench.run(text, "count.least=5").ok, "one document is fewer than the gate asks for"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert target == MADE_WITH_THE_SITE or (page.parent / target).exists(), f"{page.name} → {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist(page):
    from pipelines.cli.app import app

    known = {(command.name or command.callback.__name__).replace("_", "-") for command in app.registered_commands}
    code = " ".join(re.findall(r"`([^`]+)`", page.read_text()))
    for command in re.findall(r"(?<!\w )\bregraft ([a-z][a-z-]*)\b", code):
        assert command in known, f"{page.name}: regraft {command}"


def test_the_overview_names_every_method():
    rows = [
        line for line in (ROOT / "docs/methods.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    named: set[str] = set()
    for row in rows:
        family = ""
        for name in re.findall(r"`([a-z_.]+)`", row.split("|")[1]):
            family = name.partition(".")[0] or family
            named.add(name if not name.startswith(".") else family + name)
    assert set(METHODS) <= named
