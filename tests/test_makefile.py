"""The experiments run one after another, into one store, and a failing one stops no other."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REGRAFT = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/called"\ncase "$2" in *bad*) exit 1;; esac\n'


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(("names", "status"), [("one two", 0), ("one bad two", 2)])
def test_experiments(tmp_path, names, status):
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", "bin/regraft", "ready", "ready-test"):
        (tmp_path / name).write_text(REGRAFT)
        (tmp_path / name).chmod(0o755)
    words = ["make", "experiments", f"VENV={tmp_path}", f"EXPERIMENTS={names}", "STORE=s3://lab/x", "ARGS="]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    called = (tmp_path / "bin/called").read_text().splitlines()
    assert called == [f"run pipelines/{name}.yaml --store s3://lab/x" for name in names.split()]
    assert ("failed: bad" in done.stdout) == bool(status)


def test_every_experiment_is_a_pipeline():
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("EXPERIMENTS"))
    names = line.partition("=")[2].split()
    shipped = {file.stem for file in (ROOT / "pipelines").glob("*.yaml")}
    assert set(names) == shipped - {"quickstart", "data", "evaluate"}, "those take minutes"
