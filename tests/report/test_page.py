"""The page of real small runs: whole, escaped, self-contained, and there at the end of every run."""

import base64
import os
import subprocess
import sys

import pytest

from pipelines.cli.commands.looking import report
from pipelines.cli.outcome import print_result
from pipelines.report.write import current_report, report_file, write_report
from pipelines.running.journal import Journal, JournalWriter, close_dead_runs, list_runs
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from stages.errors import UserError
from tests.holders import dead
from tests.report.page import read

MODELS = """\
name: models
description: <img src=x onerror=alert(1)> & more
stages:
  teacher: {uses: "tests.report.toys:Make", with: {size: 200}}
  student: {uses: "tests.report.toys:Make", inputs: {teacher: teacher}, with: {steps: 30}}
  measured:
    uses: "tests.report.toys:Measure"
    matrix: {model: [teacher, student]}
    inputs: {model: "${matrix.model}"}
    expect: {perplexity: "< 20"}
"""
HOSTILE = """\
name: hostile
stages:
  a: {uses: "tests.toy:Write", with: {text: "</pre><script>alert('text')</script>"}}
  b: {uses: "tests.toy:Fail", inputs: {text: a}, with: {how: fault}}
  c: {uses: "tests.toy:Copy", inputs: {text: b}}
  d: {uses: "tests.toy:Copy", inputs: {text: a}, expect: {length: "< 3"}}
"""


def page_of(bench, result):
    return read(report_file(bench.store, result.run).read_text(encoding="utf-8"))


@pytest.fixture
def models(bench):
    return bench.run(MODELS)


def test_every_stage_and_its_figures_are_on_the_page(bench, models):
    page = page_of(bench, models)
    for name in models.states:
        assert name in page.text
    assert page.tags["details"] == len(models.states)
    digest = models.manifests["teacher"].outputs["model"].digest
    assert f'title="{digest}"' in page.html
    for words in ("✓ done", "<b>made</b> a model", "Needles & hay: heat map", "python", "perplexity < 20", "boolq acc"):
        assert words in page.text.replace("perplexity 5 < 20", "perplexity < 20"), words
    assert "<img src=x onerror=alert(1)> & more" in page.text


def test_the_table_tells_models_from_teacher_to_last(bench, models):
    table = page_of(bench, models).html.partition('<table class="models">')[2].partition("</table>")[0]
    words = read_words(table)
    assert words.index("teacher") < words.index("student")
    assert "−50.0 %" in words, "bytes and parameters halve"
    assert "× 2" in words, "perplexity doubles"
    assert "−25.0 pt" in words, "accuracy falls from one half to a quarter"
    assert "99" not in words, "what the maker found gives way to the evaluation"
    assert "0.5" in words, "the distance is known from the maker alone"


def read_words(fragment: str) -> list[str]:
    parts = fragment.replace("<", "\0<").replace(">", ">\0").split("\0")
    return [part.strip() for part in parts if part.strip() and not part.startswith("<")]


def test_figures_lie_in_the_page_once_and_not_when_too_large(bench, models):
    page = page_of(bench, models)
    drawn = [address for address in page.addresses if address.startswith("data:image/svg+xml")]
    texts = [base64.b64decode(address.partition(",")[2]).decode() for address in drawn]
    assert sum("teal" in text for text in texts) == 2, "one heat map for each arm"
    assert sum(address.startswith("data:image/png") for address in page.addresses) == 2, "the dots, not the copies"
    assert "large.png has 2.0 MiB, more than the 2.0 MiB shown here: see" in page.text


def test_curves_are_drawn_for_either_theme_and_say_what_is_not_a_number(bench, models):
    page = page_of(bench, models)
    assert "loss: 0.1 at step 30" in page.text
    assert "Never a finite number: broken." in page.text
    curves = [base64.b64decode(address.partition(",")[2]).decode(errors="replace") for address in page.addresses]
    loss = next(text for text in curves if "<path" in text and "currentColor" in text)
    assert "prefers-color-scheme:dark" in loss
    assert "#010203" not in loss


def test_a_failed_run_has_its_page_and_nothing_on_it_runs(bench):
    result = bench.run(HOSTILE)
    assert not result.ok
    page = page_of(bench, result)
    assert "✗ failed" in page.text
    assert "StageError: something broke" in page.text
    assert "Traceback" in page.text
    assert "</pre><script>alert('text')</script>" in page.text
    assert "✗ broken" in page.text, "the gate of d"
    assert "skipped" in page.text
    assert "never made from b.text" in page.text, "c would have read what b did not make"


def test_a_cached_run_has_a_page_only_when_asked(bench, models):
    first = models.run
    again = bench.run(MODELS)
    assert set(again.states.values()) == {"cached"}
    assert not report_file(bench.store, again.run).exists()
    page = read(current_report(bench.store, again.run).read_text())
    assert f"made by run {first}" in page.text
    assert "−50.0 %" in page.text
    assert "Needles & hay" in page.text


def test_a_page_is_made_anew_only_when_it_shows_another_state(bench, models):
    file = report_file(bench.store, models.run)
    before = file.stat().st_mtime_ns
    assert current_report(bench.store, models.run) == file
    assert file.stat().st_mtime_ns == before
    file.write_text(file.read_text().replace('data-state="done"', 'data-state="running"', 1))
    current_report(bench.store, models.run)
    assert 'data-state="done"' in file.read_text()


def test_a_run_that_goes_on_or_died_is_told_so(bench):
    writer = JournalWriter(bench.store.run_directory("r1"))
    spec = {"name": "a", "uses": "m:A"}
    writer.write({"event": "run-started", "run": "r1", "pipeline": "p", "stages": [spec]})
    writer.write({"event": "stage-started", "stage": "a", "attempt": 1})
    os.close(writer.file)
    assert "▶ running" in read(current_report(bench.store, "r1").read_text()).text
    writer.mark.write_text(dead("r1").to_json())
    close_dead_runs(bench.store)
    assert "- cancelled" in read(current_report(bench.store, "r1").read_text()).text


def test_the_same_run_gives_the_same_page(bench, models):
    file = report_file(bench.store, models.run)
    first = file.read_bytes()
    write_report(bench.store, models.run)
    assert file.read_bytes() == first


def test_a_run_does_not_fail_for_want_of_a_page(bench, monkeypatch, capsys):
    def broken(*_):
        raise OSError("no ink\nleft")

    monkeypatch.setattr("pipelines.report.write.write_report", broken)
    result = bench.run(MODELS)
    assert result.ok
    warning = capsys.readouterr().err
    assert "warning: the run has no report: OSError: no ink left" in warning
    assert len(warning.splitlines()) == 1
    assert Journal(bench.store.run_directory(result.run) / "journal.jsonl").read()[-1]["event"] == "run-finished"


def test_figures_that_are_gone_are_named(bench, models):
    manifest = models.manifests["measured[model=teacher]"]
    (bench.store.directory(manifest.method, manifest.key) / "report" / "dot.png").unlink()
    page = read(write_report(bench.store, models.run).read_text())
    assert "dot.png is not on this machine: see" in page.text


def test_secrets_do_not_get_onto_the_page(bench):
    token = "hf_" + "a1B2c3D4" * 4
    result = bench.run(f"name: s\nstages:\n  a: {{uses: 'tests.toy:Write', with: {{text: '{token}'}}}}\n")
    assert token not in page_of(bench, result).html


def test_the_end_of_a_run_names_its_page(bench, models, capsys):
    print_result(parse(Document("f.yaml", MODELS)), bench.store, models, "f.yaml")
    assert f"the run on one page: store/runs/{models.run}/report.html" in capsys.readouterr().out


def test_the_command_prints_the_path(bench, models):
    command = [sys.executable, "-m", "pipelines", "report", "--store", str(bench.store.root)]
    path = os.pathsep.join([*sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.stdout.strip() == str(report_file(bench.store, list_runs(bench.store.root)[-1])), done.stderr


def test_the_page_can_be_opened(bench, models, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or len(opened) == 1)
    report(models.run[:-2], str(bench.store.root), open_=True)
    assert opened == [report_file(bench.store, models.run).as_uri()]
    with pytest.raises(UserError, match="no browser"):
        report(None, str(bench.store.root), open_=True)


def test_matplotlib_is_imported_only_for_curves(bench):
    program = (
        "import sys\nfrom pipelines.report.write import write_report\nfrom pipelines.store import open_store\n"
        "write_report(open_store(sys.argv[1]), sys.argv[2])\n"
        "print(sorted({'matplotlib', 'numpy', 'torch', 'mlflow', 'ray'} & set(sys.modules)))"
    )
    result = bench.run('name: f\nstages:\n  a: {uses: "tests.toy:Write"}\n')
    done = subprocess.run(
        [sys.executable, "-c", program, str(bench.store.root), result.run],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
