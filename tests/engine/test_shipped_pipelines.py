"""Every shipped pipeline is read, typed and planned; the quickstart's DAG runs on a tiny model."""

import json
from fnmatch import fnmatch
from pathlib import Path

import jsonschema
import pytest

import benchmarks
import clusters
import pipelines
from clusters.profile import ProfileError, load_profile
from pipelines.planning.plan import make_plan
from pipelines.spec.document import Document
from pipelines.spec.load import load
from pipelines.spec.schema import json_schema
from pipelines.store import open_store
from stages import registry
from tests.tiny import tiny_model, tiny_text

SHIPPED = sorted(Path(pipelines.__file__).parent.glob("*.yaml"))
MEASURED = sorted(Path(benchmarks.__file__).parent.rglob("*.yaml"))
PROFILES = sorted(Path(clusters.__file__).parent.glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_pipelines_can_be_planned(file, tmp_path):
    plan = make_plan(load(file), open_store(str(tmp_path)))
    assert plan.count("run") >= 1
    assert load(file).description


@pytest.fixture(scope="module")
def schema():
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("file", [*SHIPPED, *MEASURED], ids=lambda file: file.stem)
def test_an_editor_s_schema_accepts_them(file, schema):
    assert [error.message for error in schema.iter_errors(Document.read(file).root)] == []


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_shipped_profiles_can_be_loaded(file):
    assert load_profile(file.stem).description


def test_a_bad_profile_is_told(tmp_path):
    (tmp_path / "p.yaml").write_text("adress: local\n")
    with pytest.raises(ProfileError, match="adress"):
        load_profile(str(tmp_path / "p.yaml"))


def quickstart(bench, directory: Path, *more: str):
    """Run the quickstart's DAG on a tiny model and generated text."""
    model = tiny_model(directory / "model", num_layers=3, hidden=64)
    lines = [json.dumps({"passage": text}) for text in tiny_text(60, seed=0)]
    (directory / "text.jsonl").write_text("\n".join(lines))
    small = (
        f"params.model={model}",
        f"params.dataset={directory / 'text.jsonl'}",
        "params.tokens=512",
        "corpus.sequence_length=32",
        "corpus.heldout_fraction=0.2",
        "student.batch_sequences=4",
        "int4.expect.perplexity_ratio='< 5'",
    )
    text = (Path(pipelines.__file__).parent / "quickstart.yaml").read_text()
    return bench.run(text, *small, *more)


def test_the_quickstart_s_dag_on_a_tiny_model(bench, tmp_path):
    result = quickstart(bench, tmp_path)
    assert result.ok, result.failures
    rows = {name: manifest.metrics for name, manifest in result.manifests.items() if name.startswith("perplexity")}
    assert len(rows) == 3
    teacher, student, int4 = (rows[f"perplexity[model={name}]"] for name in ("teacher", "student", "int4"))
    assert student["parameters"] < teacher["parameters"]
    assert int4["bytes"] < student["bytes"]
    assert result.manifests["student"].metrics["kl_to_parent"] > 0
    for name, manifest in result.manifests.items():
        declared = registry.find(manifest.method).metrics
        undeclared = [metric for metric in manifest.metrics if not any(fnmatch(metric, each) for each in declared)]
        assert not (declared and undeclared), f"{name} reports {undeclared}, which gates could not name"
    files = [file for file in (bench.store.root / "artifacts").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".jinja", ".parquet", ".safetensors", ".svg"}, "no pickle"
    again = quickstart(bench, tmp_path)
    assert set(again.states.values()) == {"cached"}


def test_the_same_seed_gives_the_same_bytes(bench, tmp_path):
    first = quickstart(bench, tmp_path)
    bench.store = open_store(str(tmp_path / "other"))
    second = quickstart(bench, tmp_path)
    digests = [
        {
            name: {key: record.digest for key, record in manifest.outputs.items()}
            for name, manifest in result.manifests.items()
        }
        for result in (first, second)
    ]
    assert digests[0] == digests[1]


def test_changing_one_parameter_reruns_only_what_depends_on_it(bench, tmp_path):
    quickstart(bench, tmp_path)
    result = quickstart(bench, tmp_path, "int4.group_size=16")
    done = {name for name, state in result.states.items() if state == "done"}
    assert done == {"int4", "perplexity[model=int4]"}
