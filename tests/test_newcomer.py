"""The first day of somebody new, with the installed package in an empty directory, as docs/first.md tells it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipelines", "stages", "grafts", "clusters")
SMALL = {
    "params.model": "generated:llama",
    "params.dataset": "generated:text",
    "params.text_field": "text",
    "params.tokens": "512",
    "params.cpus": "1",
    "corpus.sequence_length": "32",
    "corpus.heldout_fraction": "0.2",
    "student.batch_sequences": "4",
}
Regraft = Callable[..., str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it, apart from the checkout."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    return site


@pytest.fixture
def regraft(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Regraft:
    """The command, in an empty directory; gives what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "REGRAFT_STORE"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> str:
        command = [sys.executable, str(installed / "bin/regraft"), *words]
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr
        return done.stdout

    return run


def test_from_the_quickstart_to_a_model_to_take_away(regraft: Regraft, tmp_path: Path):
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    told = regraft("run", "quickstart", "--inline", *settings)
    rows = re.findall(r"^(teacher|student|int4) +\d", told, flags=re.MULTILINE)
    assert rows == ["teacher", "student", "int4"], told
    told = regraft("rerun", "latest", "--only", "int4", "--set", "int4.group_size=16", "--inline")
    assert re.search(r"✓ int4 ", told), told

    first, second = runs_of_int4(tmp_path)
    assert (first.data.params["group_size"], second.data.params["group_size"]) == ("32", "16")
    assert second.data.metrics["perplexity_ratio"] > 0
    assert second.data.tags["regraft.pipeline"] == "quickstart"

    regraft("export", "int4", "mine")
    assert group_size_and_answer(tmp_path / "mine") == 16


def runs_of_int4(directory: Path) -> list:
    """What MLflow has of the stage, oldest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{directory / '.regraft/mlflow.db'}")
    everywhere = [each.experiment_id for each in client.search_experiments()]
    return client.search_runs(everywhere, "tags.`regraft.stage` = 'int4'", order_by=["attributes.start_time"])


def group_size_and_answer(directory: Path) -> int:
    """What a plain loader finds in an exported directory; it can be asked."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert type(model) is LlamaForCausalLM
    logits = model(**tokenizer("The old river", return_tensors="pt")).logits
    assert logits.shape[-1] == model.config.vocab_size
    assert logits.isfinite().all()
    (group,) = json.loads((directory / "config.json").read_text())["quantization_config"]["config_groups"].values()
    return group["weights"]["group_size"]
