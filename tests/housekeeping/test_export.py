"""What leaves the store: files, card and lineage of a real model of two layers, and of a dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.cli.lineage import show_lineage
from pipelines.cli.session import run_pipeline
from pipelines.housekeeping.catalogue import Catalogue
from pipelines.housekeeping.directory import trace_directory
from pipelines.housekeeping.export import export
from pipelines.housekeeping.gc import Policy
from pipelines.housekeeping.publish import Publisher
from pipelines.housekeeping.sweep import collect
from pipelines.spec.document import Document
from pipelines.spec.load import parse
from pipelines.store import Store, open_store
from stages.errors import UserError
from tests.engine.conftest import INLINE
from tests.tiny import text_dataset, tiny_model

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"
PIPELINE = f"""
name: tiny
description: "{SECRET}"
params: {{hub_token: sesame-open-wide}}
stages:
  base: {{uses: source.model, with: {{model: MODEL, dtype: float32}}}}
  text: {{uses: source.dataset, with: {{dataset: TEXT}}}}
  corpus: {{uses: data.prepare, inputs: {{text: text, model: base}}, with: {{sequence_length: 32}}}}
  int8: {{uses: quantize.rtn, inputs: {{model: base}}, with: {{bits: 8, group_size: 8}}}}
  score: {{uses: evaluate.perplexity, inputs: {{model: base, data: corpus.heldout}}, with: {{limit: 2}}}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("home-of-joe")
    tiny_model(root / "private" / "model")
    (root / "private" / "model" / "README.md").write_text("---\nlicense: Apache-2.0\n---\n# upstream\n")
    text_dataset(root / "private" / "text")
    text = PIPELINE.replace("MODEL", str(root / "private" / "model")).replace(
        "TEXT", str(root / "private" / "text" / "*.parquet")
    )
    opened = open_store(str(root / "store"))
    result = run_pipeline(parse(Document("f.yaml", text), ()), opened, INLINE)
    assert result.ok, result.failures
    return opened


def test_the_directory_loads_as_it_is_and_is_free_to_edit(store: Store, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = export(store, "base", tmp_path / "new" / "mine")
    model = AutoModelForCausalLM.from_pretrained(done.directory)
    assert model.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(done.directory)("The old river").input_ids
    for path in done.directory.iterdir():
        path.write_bytes(b"edited")
    assert store.damage(done.made.manifest, read=True) is None


def test_the_card_says_what_it_is(store: Store, tmp_path: Path) -> None:
    card = (export(store, "base", tmp_path / "mine").directory / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert "base_model" not in front, "a local model is on no hub"
    assert front["library_name"] == "transformers"
    assert "| perplexity |" in card
    assert "`evaluate.perplexity` | limit 2 | corpus.heldout" in card
    card = (export(store, "int8", tmp_path / "int8").directory / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["regraft", "quantize"]
    assert "| **int8** | `quantize.rtn` | bits 8, group_size 8 | base.model |" in card
    assert "| perplexity |" not in card, "the figures of the model it was made of are not its own"
    assert "pip install transformers compressed-tensors" in card


def test_no_local_path_and_no_secret_leaves(store: Store, tmp_path: Path) -> None:
    for what in ("base", "int8", "corpus.train"):
        directory = export(store, what, tmp_path / what).directory
        texts = {path.name: path.read_text("utf-8", "ignore") for path in directory.iterdir()}
        for hidden in (SECRET, "sesame-open-wide", "home-of-joe", str(store.root)):
            assert [name for name, text in texts.items() if hidden in text] == []
        assert yaml.safe_load(texts["pipeline.yaml"])["stages"]["base"]["with"]["model"] == "model"


def test_a_dataset_loads_as_it_is(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    directory = export(store, "corpus.train", tmp_path / "data").directory
    found = datasets.load_dataset(str(directory), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found[0]["input_ids"]) == 32
    assert "schema `tokens`" in (directory / "README.md").read_text()


def test_a_report_is_copied_as_it_is(store: Store, tmp_path: Path) -> None:
    done = export(store, "score", tmp_path / "score")
    assert done.files == ("report.json",)
    assert trace_directory(done.directory, Catalogue.read(store)).ancestry.step.stage == "score"


def test_a_directory_is_traced_with_and_without_its_note(store: Store, tmp_path: Path, capsys) -> None:
    directory = export(store, "int8", tmp_path / "int8").directory
    show_lineage(str(tmp_path / "no-store"), str(directory), as_json=True)
    with_note = json.loads(capsys.readouterr().out)
    assert [step["stage"] for step in with_note["steps"]] == ["int8", "base"]
    assert (with_note["found_by"], with_note["differs"]) == ("lineage.json", [])
    (directory / "lineage.json").unlink()
    (directory / "config.json").write_text("{}")
    show_lineage(store.location, str(directory), as_json=True)
    without = json.loads(capsys.readouterr().out)
    assert without["steps"] == with_note["steps"]
    assert (without["found_by"], without["differs"]) == ("content", ["config.json changed"])


def test_a_foreign_directory_and_a_damaged_note(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="nothing tells where"):
        trace_directory(tmp_path, Catalogue.read(store))
    (tmp_path / "lineage.json").write_text('{"format": 1, "files": {}}')
    with pytest.raises(UserError, match="no lineage as `regraft export` writes it"):
        trace_directory(tmp_path, None)


def test_where_it_may_not_go(store: Store, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("all my work")
    with pytest.raises(UserError, match=r"is not empty: it holds thesis\.tex"):
        export(store, "base", tmp_path / "full")
    with pytest.raises(UserError, match="lies inside the store"):
        export(store, "base", store.root / "artifacts" / "mine")
    with pytest.raises(UserError, match="is a file"):
        export(store, "base", tmp_path / "full" / "thesis.tex")
    with pytest.raises(UserError, match="cannot write"):
        export(store, "base", tmp_path / "full" / "thesis.tex" / "below")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "thesis.tex"]


def test_removed_and_damaged_artifacts_are_not_exported(store: Store, tmp_path: Path) -> None:
    copy = open_store(shutil.copytree(store.root, tmp_path / "copy").as_posix())
    made = export(copy, "base", tmp_path / "fine").made.manifest
    weights = copy.directory(made.method, made.key) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        export(copy, "base", tmp_path / "bad")
    collect(copy, Policy(keep_last=0, keep_newest=False))
    with pytest.raises(UserError, match="were removed from the store"):
        export(copy, "base", tmp_path / "gone")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see /home/joe/data/x.jsonl, then go", "see x.jsonl, then go"),
        ("~/models/a b", "a b"),
        ("file:///srv/x/y.txt", "y.txt"),
        ("https://example.org/a/b and/or s3://bucket/key 1/2", "https://example.org/a/b and/or s3://bucket/key 1/2"),
        ("token=abcdefgh12345", "token=***"),
    ],
)
def test_what_is_published_is_clean(text: str, clean: str) -> None:
    assert Publisher({}).text(text) == clean
