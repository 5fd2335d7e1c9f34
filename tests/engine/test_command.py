"""The `regraft` command as a person meets it: what it prints, its exit codes, and what it never imports."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

from pipelines.cli.app import app
from pipelines.cli.options import find_pipeline
from pipelines.cli.session import RunOptions

GOOD = """\
name: small
params: {text: abc}
stages:
  a: {uses: "tests.toy:Write", with: {text: "${params.text}"}}
  b: {uses: "tests.toy:Copy", inputs: {text: a}}
"""


@pytest.fixture
def regraft(tmp_path):
    """Runs the command in an empty directory with `p.yaml`."""
    (tmp_path / "p.yaml").write_text(GOOD)
    root = os.getcwd()  # noqa: PTH109

    def run(*arguments: str, code: int = 0, cwd: str = ".", **environment: str) -> str:
        path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=tmp_path / cwd,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "150", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        text = done.stdout + done.stderr
        assert code == 1 or "Traceback" not in text, text
        assert done.returncode == code, text
        return text

    return run


INLINE = ("--inline", "--no-track")


def test_run_then_cached_then_changed(regraft, tmp_path):
    first = regraft("run", "p.yaml", *INLINE)
    assert "2 done" in first
    assert "regraft plan p.yaml --set params.text=…" in first
    assert "everything is cached: 2 stages" in regraft("run", "p.yaml", *INLINE)
    plan = regraft("plan", "p.yaml", "--set", "params.text=xyz")
    assert "params.text 'abc' → 'xyz'" in plan
    assert "waits for what a will make" in plan
    assert json.loads(regraft("plan", "p.yaml", "--json"))["stages"][0]["state"] == "cached"
    assert "small: fine" in regraft("validate", "p.yaml").replace("p.yaml: fine", "small: fine")
    assert "done" in regraft("status")
    assert len(json.loads(regraft("status", "all", "--json"))) == 2
    assert "copying" in regraft("logs", json.loads(regraft("status", "all", "--json"))[0]["run"], "b")
    assert "0 damaged" in regraft("verify")


def test_stages_that_were_not_chosen_are_counted_and_not_listed(regraft):
    for said in (regraft("plan", "p.yaml", "--until", "a"), regraft("run", "p.yaml", "--until", "a", *INLINE)):
        assert "1 not chosen" in said
        assert not any(line.split()[1:2] == ["b"] for line in said.splitlines()), said
    assert "tests.toy:Copy" not in regraft("status")


def test_a_plan_of_the_smoke_run_is_about_its_small_stages_and_its_store(regraft):
    assert "1 to run, 1 to run if inputs change" in regraft("plan", "p.yaml", "--smoke")
    regraft("run", "p.yaml", "--smoke", *INLINE)
    assert "2 cached" in regraft("plan", "p.yaml", "--smoke")
    assert "cached" not in regraft("plan", "p.yaml"), "the real one has not run"


def test_a_smoke_run_that_is_resumed_advises_the_whole_pipeline_in_the_store_it_belongs_to(regraft, tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    for store, more, named in ((".regraft", (), ""), (elsewhere, ("--store", elsewhere), f" --store {elsewhere}")):
        first = regraft("run", "p.yaml", "--smoke", *INLINE, *more)
        again = regraft("resume", "latest", "--inline", "--store", f"{store}/smoke")
        for told in (first, again):
            assert "the pipeline holds together" in told
            assert f"next:\n  regraft run p.yaml{named}\n" in told


def test_advice_is_for_the_directory_a_person_is_in(regraft, tmp_path):
    regraft("run", "p.yaml", *INLINE)
    (tmp_path / "elsewhere").mkdir()
    told = regraft("rerun", "latest", "--from", "b", "--inline", "--store", "../.regraft", cwd="elsewhere")
    (advised,) = (line for line in told.splitlines() if "regraft plan" in line)
    assert f"regraft plan {tmp_path / 'p.yaml'} --from b " in advised


def test_advice_is_for_the_same_cluster():
    assert RunOptions(cluster="existing").arguments() == ["--cluster", "existing"]
    assert RunOptions().arguments() == RunOptions("inline", cluster="existing").arguments() == []


def test_verify_finds_damage(regraft, tmp_path):
    regraft("run", "p.yaml", *INLINE)
    report = next((tmp_path / ".regraft" / "artifacts").glob("*Copy/*/text/report.json"))
    report.write_text(report.read_text().replace("abc", "abd"))
    assert "1 damaged" in regraft("verify", code=1)


BAD = {
    "no pipeline": (
        ("run", "nothing"),
        "no pipeline 'nothing'",
        ", quickstart, ",
    ),
    "no file": (("run", "nothing.yaml"), "cannot read nothing.yaml", "check the path"),
    "bad file": (("validate", "p.yaml", "--set", "a.txt=1"), "unknown parameter 'txt'", "did you mean 'text'?"),
    "bad set": (("plan", "p.yaml", "--set", "b.text"), "expected NAME=VALUE", "--set params.tokens"),
    "no runs": (("status",), "no runs in", "regraft run PIPELINE"),
    "no method": (("methods", "quantize.rt"), "unknown method", "did you mean 'quantize.rtn'?"),
    "no cluster": (
        ("run", "p.yaml", "--cluster", "nowhere"),
        "no cluster profile 'nowhere'",
        "shipped: cloud, existing",
    ),
    "no fs": (("run", "p.yaml", "--store", "nosuch://x"), "cannot open the store", "fsspec"),
}


@pytest.mark.parametrize(("arguments", "message", "fix"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_screen_with_code_2(regraft, arguments, message, fix):
    told = regraft(*arguments, code=2)
    assert message in told
    assert fix in told
    assert len(told.splitlines()) < 25


def test_failing_stage_has_code_1_and_the_user_s_fault_code_2(regraft, tmp_path):
    (tmp_path / "f.yaml").write_text("name: f\nstages:\n  a: {uses: 'tests.toy:Fail', with: {how: fault}}\n")
    told = regraft("run", "f.yaml", *INLINE, code=1)
    assert "StageError: something broke" in told
    assert "log: regraft logs" in told
    assert "go on with: regraft resume" in told
    assert "regraft run f.yaml" in told
    assert "fix: mend the input" in regraft("run", "f.yaml", *INLINE, "--set", "a.how=user", code=2)


def test_a_full_disk_is_told_and_loses_nothing(regraft, tmp_path):
    """A tmpfs of a few pages stands for the disk; without the right to mount one, a file-size limit does."""
    store = tmp_path / "small"
    store.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(store)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        arguments = ("run", "p.yaml", *INLINE, "--store", "small")
        regraft(*arguments)
        (store / "ballast").write_bytes(b"x" * (6 << 20))
        told = regraft(*arguments, "--set", "params.text=" + "y" * 10, "--set", "a.repeat=1000", code=0)
        assert "2 done" in told
        full = 72 * 2**20 - sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        (store / "more").write_bytes(b"x" * max(0, full - (4 << 20)))
        told = regraft(*arguments, "--set", "params.text=other", code=2)
        assert "disk of the store" in told
        assert "is full" in told
        assert "--store" in told
        assert "everything is cached" in regraft(*arguments)
    finally:
        subprocess.run(["umount", str(store)], check=True)


def test_disk_fills_up_while_a_stage_writes(regraft, tmp_path):
    (tmp_path / "fill.py").write_text(
        "from tests.toy import Toy\n\n\nclass Fill(Toy):\n    def run(self, context):\n"
        "        raise OSError(28, 'No space left on device')\n"
    )
    (tmp_path / "f.yaml").write_text("name: f\nstages:\n  a: {uses: 'fill:Fill'}\n")
    told = regraft("run", "f.yaml", *INLINE, code=2)
    assert "the disk is full" in told
    assert "run again to continue" in told


def test_a_place_that_cannot_be_written_is_told_and_what_is_only_remembered_is_not_missed(regraft, tmp_path):
    regraft("run", "p.yaml", *INLINE)
    store = tmp_path / ".regraft"
    shutil.rmtree(store / "cache")
    (store / "cache").write_text("in the way")
    assert "2 cached" in regraft("plan", "p.yaml")
    shutil.move(store / "runs", tmp_path / "elsewhere")
    (store / "runs").write_text("in the way")
    told = regraft("run", "p.yaml", *INLINE, code=2)
    assert f"error: {store}/runs" in told
    assert "fix: check that it is there" in told


def test_port_taken(regraft):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = regraft("ui", "--port", str(port), code=2)
    assert str(port) in told
    assert "--port" in told


@pytest.mark.parametrize(
    "arguments", [("--help",), ("validate", "p.yaml"), ("plan", "p.yaml"), ("run", "p.yaml", *INLINE)]
)
def test_planning_and_cached_runs_import_nothing_heavy(regraft, tmp_path, arguments):
    regraft("run", "p.yaml", *INLINE)
    (tmp_path / "watch.py").write_text(
        "import sys\nfrom pipelines.main import main\ntry:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'ray', 'mlflow', 'transformers', 'deepspeed', 'numpy'}\n"
        "    print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])  # noqa: PTH109
    command = [sys.executable, "watch.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_every_method_is_documented(regraft):
    documented = json.loads(regraft("methods", "--json"))
    for name, method in documented.items():
        assert method["summary"], name
        for parameter, about in method["parameters"].items():
            assert about["description"], f"{name}.{parameter} has no docstring"
    listed = regraft("methods")
    assert all(name in listed for name in documented)
    assert "execution" in regraft("methods", "distill.logits")


def test_an_editor_s_schema_is_printed(regraft):
    assert json.loads(regraft("schema"))["title"] == "regraft pipeline"


def test_a_directory_of_the_same_name_does_not_hide_a_shipped_pipeline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert find_pipeline("quickstart").name == "quickstart.yaml"


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        app(["--version"])
    assert end.value.code == 0
    assert re.fullmatch(r"regraft \d+\.\d+\.\d+\n", capsys.readouterr().out)
