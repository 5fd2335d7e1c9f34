"""Every shipped pipeline runs whole at its smallest, and every stage that trains or measures can be made small."""

from pathlib import Path

import pytest

import pipelines
from pipelines.cli.session import run_pipeline
from pipelines.planning.smoke import full_size, smoke_location, smoke_version
from pipelines.spec.document import Document
from pipelines.spec.load import load, parse
from stages import registry
from stages.stage import Parameters
from tests.engine.conftest import INLINE

SHIPPED = sorted(Path(pipelines.__file__).parent.glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_pipelines_run_small(bench, file):
    pipeline = smoke_version(load(file))
    assert not full_size(pipeline)
    result = run_pipeline(pipeline, bench.store, INLINE)
    assert result.ok, result.failures
    assert {"done"} <= set(result.states.values()) <= {"done", "cached"}, "two stages may shrink to the same work"


@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_with_parameters_has_a_profile(method):
    parameters = registry.find(method).Params
    assert parameters.smoke is not Parameters.smoke or not parameters.model_fields


def test_gates_ask_for_a_number_only(bench):
    text = "name: x\nstages: {a: {uses: 'tests.toy:Write', expect: {length: '> 99'}}}"
    assert not bench.run(text).ok
    assert run_pipeline(smoke_version(parse(Document("f", text))), bench.store, INLINE).ok
    text = text.replace("Write", "Fail").replace("expect", "with: {how: nan}, expect")
    result = run_pipeline(smoke_version(parse(Document("f", text))), bench.store, INLINE)
    assert "length > -inf" in result.failures["a"].message


def test_a_stage_without_a_profile_is_named():
    stages = "a: {uses: 'tests.toy:Write', with: {repeat: 9}}, b: {uses: source.dataset, with: {dataset: x}}"
    text = f"name: x\nstages: {{{stages}}}"
    assert full_size(parse(Document("f", text))) == ["a"]


def test_results_are_apart():
    assert smoke_location("s3://bucket/store/") == "s3://bucket/store/smoke"
